package issuer

import (
	"net/http"
	"testing"
)

func BenchmarkStartAndClose(b *testing.B) {
	for _, alg := range []string{ES256, RS256} {
		b.Run(alg, func(b *testing.B) {
			for b.Loop() {
				s, err := Start(b.Context(), Options{Algorithm: alg, Users: []User{admin}})
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}

func BenchmarkMint(b *testing.B) {
	s, err := Start(b.Context(), Options{Users: []User{admin}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		if _, err := s.Mint(admin.Name, MintOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkClientCredentialsGrant(b *testing.B) {
	s, err := Start(b.Context(), Options{Users: []User{admin}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	form := clientCredentials("openid", AudienceScope(DefaultProjectID), ScopeProjectsRoles)
	form.Set("client_id", admin.Name)
	form.Set("client_secret", admin.ClientSecret)
	for b.Loop() {
		resp, err := c.PostForm(s.TokenURL(), form)
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			b.Fatal(resp.Status)
		}
	}
}
