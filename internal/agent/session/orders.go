package session

// orders are the numbers of resizes and signals that came, of which two
// connections of the device may bring copies, each in its own order.
type orders struct {
	last   uint64 // highest number that came
	before uint64 // bit i: last-1-i came too
}

// first tells whether n comes for the first time, and notes that it came. Without
// a number, 0, everything does. What is too old to be told is a copy.
func (o *orders) first(n uint64) bool {
	switch back := o.last - n; { // wraps where n is higher
	case n == 0:
		return true
	case n > o.last:
		ahead := n - o.last
		o.before <<= ahead // 0 from 64 on
		if o.last > 0 && ahead <= 64 {
			o.before |= 1 << (ahead - 1)
		}
		o.last = n
		return true
	case back == 0, back > 64:
		return false
	default:
		bit := uint64(1) << (back - 1)
		isNew := o.before&bit == 0
		o.before |= bit
		return isNew
	}
}
