package oidcverify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/harmony-fleet/fleet/internal/netaddr"
)

const (
	maxBody      = 1 << 20
	maxRedirects = 3
)

// fetcher gets the key set over HTTP.
type fetcher struct {
	cfg    IssuerConfig
	client *http.Client
	// bearerHosts are the only hosts ("host:port" as in a URL) that see the bearer token.
	bearerHosts map[string]bool
}

func newFetcher(cfg IssuerConfig) (*fetcher, error) {
	f := &fetcher{cfg: cfg, bearerHosts: map[string]bool{}}
	for name, raw := range map[string]string{"url": cfg.URL, "jwks_url": cfg.JWKSURL} {
		if raw == "" {
			continue
		}
		u, err := f.checkURL(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		f.bearerHosts[u.Host] = true
	}
	transport := cfg.transport
	if transport == nil {
		conf := &tls.Config{MinVersion: tls.VersionTLS12}
		if cfg.CAFile != "" {
			pem, err := os.ReadFile(cfg.CAFile)
			if err != nil {
				return nil, fmt.Errorf("ca_file: %w", err)
			}
			conf.RootCAs = x509.NewCertPool()
			if !conf.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("ca_file %s holds no PEM certificate", cfg.CAFile)
			}
		}
		transport = &http.Transport{
			Proxy:           http.ProxyFromEnvironment,
			TLSClientConfig: conf,
			// Two requests every few minutes: a kept connection would only go stale.
			DisableKeepAlives: true,
		}
	}
	f.client = &http.Client{
		Transport: transport,
		Timeout:   cfg.FetchTimeout,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return errors.New("too many redirects")
			}
			_, err := f.checkURL(req.URL.String())
			return err
		},
	}
	return f, nil
}

// checkURL refuses what a key must not be fetched over.
func (f *fetcher) checkURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%s is not an absolute http(s) URL", Clip(raw))
	}
	if u.User != nil {
		return nil, errors.New("the URL holds a user name or password; use token_file")
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && (f.cfg.Insecure || netaddr.IsLoopback(u.Hostname())):
	case u.Scheme == "http":
		return nil, fmt.Errorf("%s is plain http to a host that is not loopback; use https, or set insecure = true", Clip(raw))
	default:
		return nil, fmt.Errorf("%s is not an http(s) URL", Clip(raw))
	}
	return u, nil
}

// fetch makes one round: discovery, unless the address of the keys is configured, then keys.
func (f *fetcher) fetch(ctx context.Context) (keySet, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.FetchTimeout)
	defer cancel()
	jwksURL := f.cfg.JWKSURL
	if jwksURL == "" {
		var err error
		if jwksURL, err = f.discover(ctx); err != nil {
			return nil, err
		}
	}
	body, err := f.get(ctx, jwksURL)
	if err != nil {
		return nil, fmt.Errorf("fetching the keys: %w", err)
	}
	set, err := parseKeySet(body)
	if err != nil {
		return nil, fmt.Errorf("fetching the keys from %s: %w", jwksURL, err)
	}
	return set, nil
}

func (f *fetcher) discover(ctx context.Context) (string, error) {
	body, err := f.get(ctx, strings.TrimSuffix(f.cfg.URL, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return "", fmt.Errorf("discovery: %w", err)
	}
	var doc struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", errors.New("discovery: the document is not JSON")
	}
	if doc.Issuer != f.cfg.URL {
		return "", fmt.Errorf("discovery: the document is of issuer %s; set url to exactly that, if it is the one meant", Clip(doc.Issuer))
	}
	if _, err := f.checkURL(doc.JWKSURI); err != nil {
		return "", fmt.Errorf("discovery: jwks_uri: %w", err)
	}
	return doc.JWKSURI, nil
}

func (f *fetcher) get(ctx context.Context, rawURL string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	bearer := f.cfg.TokenFile != "" && f.bearerHosts[req.URL.Host]
	if bearer {
		token, err := os.ReadFile(f.cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("token_file: %w", err)
		}
		// net/http drops this header by itself on a redirect to another host.
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		hint := ""
		if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
			switch {
			case f.cfg.TokenFile == "":
				hint = "; if the issuer is a Kubernetes API server, set token_file"
			case !bearer:
				hint = "; the token of token_file goes to the configured hosts only: set jwks_url to this address, if it is trusted"
			}
		}
		return nil, fmt.Errorf("%s answered %s%s", rawURL, resp.Status, hint)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", rawURL, err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the answer of %s is larger than %d bytes", rawURL, maxBody)
	}
	return body, nil
}
