{{- define "fleet.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "fleet.nats" -}}
{{ include "fleet.name" . }}-nats
{{- end }}

{{- define "fleet.secret" -}}
{{ .Values.secrets.existing | default (printf "%s-secrets" (include "fleet.name" .)) }}
{{- end }}

{{- define "fleet.natsURL" -}}
{{- if .Values.nats.url }}{{ .Values.nats.url }}
{{- else if .Values.nats.enabled }}tls://{{ include "fleet.nats" . }}.{{ .Release.Namespace }}.svc:4222
{{- else }}{{ fail "nats.url: needed where nats.enabled is false" }}
{{- end }}
{{- end }}

{{/* fleet.selector: of one part; (list $ "nats") */}}
{{- define "fleet.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ $.Release.Name }}
{{- end }}

{{- define "fleet.labels" -}}
{{- $ := index . 0 -}}
{{ include "fleet.selector" . }}
app.kubernetes.io/part-of: harmony-fleet
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
{{- end }}

{{/* fleet.image: (list $ "callout") */}}
{{- define "fleet.image" -}}
{{- $ := index . 0 -}}
{{- $image := index $.Values.images (index . 1) -}}
{{- if regexMatch "(:[^/]+|@sha256:.+)$" $image }}{{ $image }}{{ else }}{{ $image }}:{{ $.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* fleet.podSecurity: what the restricted level of Pod Security asks for. No user is
named. Where no platform sets the group of volumes, one is. */}}
{{- define "fleet.podSecurity" -}}
{{- $defaults := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- if not (.Capabilities.APIVersions.Has "security.openshift.io/v1") }}
{{- $_ := set $defaults "fsGroup" 65532 }}
{{- end }}
{{- mergeOverwrite $defaults .Values.podSecurityContext | toYaml }}
{{- end }}

{{- define "fleet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* fleet.placement: (list $ "nats"), what all Pods have alike */}}
{{- define "fleet.placement" -}}
{{- $ := index . 0 -}}
enableServiceLinks: false
securityContext:
  {{- include "fleet.podSecurity" $ | nindent 2 }}
{{- with $.Values.images.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "fleet.selector" . | nindent 8 }}
{{- end }}

{{/* fleet.kubernetesIssuer: the cluster's own, as a table of the callout */}}
{{- define "fleet.kubernetesIssuer" -}}
{{- $k := .Values.callout.kubernetesIssuer -}}
{{- $subjects := $k.subjects -}}
{{- if .Values.operator.enabled -}}
{{- $operator := printf "system:serviceaccount:%s:%s-operator" .Release.Namespace (include "fleet.name" .) -}}
{{- $subjects = prepend $subjects (dict "subject" $operator "roles" (list "fleet-controller")) -}}
{{- end -}}
{{- $roles := list -}}
{{- range $subjects }}{{ $roles = concat $roles .roles }}{{ end -}}
{{- $issuer := dict "url" $k.url "audience" $k.audience "jwks_url" $k.jwksURL
  "ca_file" "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt" "token_file" "/var/run/secrets/kubernetes.io/serviceaccount/token"
  "roles" ($roles | uniq) "subjects" $subjects -}}
{{- with $k.devices }}{{ $_ := set $issuer "devices" . }}{{ end -}}
{{- $issuer | toJson -}}
{{- end }}

{{/* fleet.egressBase: names and, for the API server and issuers, HTTPS anywhere: neither has an address
that a policy could name. */}}
{{- define "fleet.egressBase" }}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
- ports:
    - {port: 443, protocol: TCP}
    - {port: 6443, protocol: TCP}
{{- end }}
{{- define "fleet.egressNATS" }}
{{- if .Values.nats.enabled }}
- to:
    - podSelector:
        matchLabels:
          {{- include "fleet.selector" (list . "nats") | nindent 10 }}
  ports:
    - {port: 4222, protocol: TCP}
{{- else }}
- ports:
    - {port: {{ (urlParse (include "fleet.natsURL" .)).host | splitList ":" | last }}, protocol: TCP}
{{- end }}
{{- end }}
