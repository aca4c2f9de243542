package cli

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
)

// selection is which devices a command goes to.
type selection struct {
	all      bool
	selector []string
}

func (s *selection) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&s.all, "all", false, "every device that ever reported")
	f.StringArrayVarP(&s.selector, "selector", "l", nil, "devices whose labels match `k=v,k2=v2`")
}

// several tells whether devices are selected rather than named.
func (s *selection) several() bool { return s.all || len(s.selector) > 0 }

// selected tells whether a command line that could not be read selects devices.
func selected(cmd *cobra.Command) bool {
	f := cmd.Flags()
	return f.Changed("all") || f.Changed("selector")
}

// check wants exactly one way to say which devices.
func (s *selection) check(named []string) (map[string]string, error) {
	ways := 0
	for _, chosen := range []bool{len(named) > 0, s.all, len(s.selector) > 0} {
		if chosen {
			ways++
		}
	}
	if ways != 1 {
		return nil, usageError{errors.New("say which devices: their ids, --all, or -l k=v")}
	}
	return parseSelector(s.selector)
}

// String is the selection as it was asked for, for people.
func (s *selection) String(named []string) string {
	switch {
	case s.all:
		return "--all"
	case len(s.selector) > 0:
		return "-l " + strings.Join(s.selector, ",")
	}
	return shorten(strings.Join(named, " "), 40)
}

// devices are the ids of those that were named, or that are selected now.
func (s *selection) devices(ctx context.Context, a *app, c *client.Client, named []string, selector map[string]string) ([]string, error) {
	if len(named) > 0 {
		return named, nil
	}
	return a.selectDevices(ctx, c, selector)
}

func isDeviceID(id string) bool { return command.CheckDeviceID(id) == nil }

// distinct names each device once: one that is named twice has one outcome.
func distinct(devices []string) []string {
	var once []string
	for _, id := range devices {
		if !slices.Contains(once, id) {
			once = append(once, id)
		}
	}
	return once
}
