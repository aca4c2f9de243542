// Package netaddr tells about addresses what the rule on secrets needs to know:
// a token or password goes out in clear to this machine only.
//
//	if !netaddr.IsLoopback(u.Hostname()) && u.Scheme == "http" {
//		return errors.New("use https")
//	}
//
// The one rule stands here because issuers, brokers and clusters all apply it,
// and a copy that is laxer than the others would be where secrets leak.
package netaddr

import "net"

// IsLoopback tells whether host, a name or an address without a port, can only
// be this machine: "localhost", which resolvers do not hand to the network
// (RFC 6761, section 6.3), or a loopback address. Names are never looked up, so
// that the answer is not the network's.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
