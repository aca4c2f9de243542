package cli

import (
	"context"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/internal/access"
)

// client connects to the operators' account. done ends client and connection.
func (a *app) client(ctx context.Context) (c *client.Client, s settings, done func(), err error) {
	nc, s, err := a.connect(ctx, access.Ops)
	if err != nil {
		return nil, s, nil, err
	}
	c, err = client.New(nc, client.Options{Timeout: a.timeout})
	if err != nil {
		nc.Close()
		return nil, s, nil, err
	}
	return c, s, func() {
		_ = c.Close()
		nc.Close()
	}, nil
}
