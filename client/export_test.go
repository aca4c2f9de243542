package client

import "time"

func init() {
	lookupTimeout, lookupAllTimeout = time.Minute, time.Minute
}
