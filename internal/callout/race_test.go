//go:build race

package callout

const raceEnabled = true
