package command

import (
	"encoding/json"
	"fmt"
	"strings"
)

// HeaderOwners, on a stored desired state, says which Kubernetes Deployment each of
// its deployments belongs to; see [EncodeOwners]. Devices ignore it.
const HeaderOwners = "X-Harmony-Owners"

// maxOwners bounds the header, in bytes: [MaxDeployments] owners with the longest
// names.
const maxOwners = MaxDeployments * (3*MaxDeviceID + 16)

// EncodeOwners gives the value of [HeaderOwners]: a JSON object of "namespace/name"
// by the name of the deployment, for example {"web":"shop/web"}.
func EncodeOwners(owners map[string]string) string {
	data, err := json.Marshal(owners) // keys sorted
	if err != nil {
		panic(fmt.Sprintf("encode owners: %v", err)) // a map of strings
	}
	return string(data)
}

// DecodeOwners reads what [EncodeOwners] gives. An empty value means none.
func DecodeOwners(value string) (map[string]string, error) {
	if value == "" {
		return nil, nil
	}
	if len(value) > maxOwners {
		return nil, fmt.Errorf("header %s has %d bytes, more than the %d allowed", HeaderOwners, len(value), maxOwners)
	}
	var owners map[string]string
	if err := decodeObject([]byte(value), &owners, true); err != nil {
		return nil, fmt.Errorf("header %s: %w", HeaderOwners, err)
	}
	for name, owner := range owners {
		if err := CheckDeploymentName(name); err != nil {
			return nil, fmt.Errorf("header %s: %w", HeaderOwners, err)
		}
		namespace, of, ok := strings.Cut(owner, "/")
		if !ok || CheckDeploymentName(namespace) != nil || CheckDeploymentName(of) != nil {
			return nil, fmt.Errorf("header %s: the owner of %s is %s, want namespace/name", HeaderOwners, name, quote(owner))
		}
	}
	return owners, nil
}
