// Package walls has no code. Its test holds which parts of this module may not
// know of each other, whatever the way in between.
package walls
