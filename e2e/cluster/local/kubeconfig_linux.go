package local

import (
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/harmony-fleet/fleet/internal/pki"
)

// kubeconfig returns a kubeconfig file for one user of one cluster, certificates
// included, so that it can be moved.
func kubeconfig(name, server string, ca []byte, pair pki.Pair) ([]byte, error) {
	entry := "harmony-fleet-" + name
	config := clientcmdapi.NewConfig()
	config.Clusters[entry] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos[entry] = &clientcmdapi.AuthInfo{ClientCertificateData: pair.Cert, ClientKeyData: pair.Key}
	config.Contexts[entry] = &clientcmdapi.Context{Cluster: entry, AuthInfo: entry, Namespace: "default"}
	config.CurrentContext = entry
	content, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	return content, nil
}
