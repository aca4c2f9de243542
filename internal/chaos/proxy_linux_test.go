package chaos

import (
	"net"
	"sync"
	"testing"
	"time"
)

// proxy is a way to a server that a test breaks.
type proxy struct {
	target string
	ln     net.Listener
	wg     sync.WaitGroup

	mu    sync.Mutex
	delay time.Duration // each way
	conns map[*proxied]bool
	dark  bool // new connections are half-dead from the start
	over  bool
}

// proxied is one connection and what stops it.
type proxied struct {
	in, out net.Conn
	frozen  chan struct{} // closed: nothing is forwarded any more
	once    sync.Once
}

func (c *proxied) freeze() { c.once.Do(func() { close(c.frozen) }) }

// newProxy listens on a port of its own until the test ends.
func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: target, ln: ln, conns: map[*proxied]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		ln.Close()
		p.mu.Lock()
		p.over = true
		for c := range p.conns {
			c.end()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

// setDelay holds back what is forwarded from now on, each way.
func (p *proxy) setDelay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// freeze stops forwarding on the connections that there are, which stay open;
// with dark also on those that are made until thaw.
func (p *proxy) freeze(dark bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dark = dark
	for c := range p.conns {
		c.freeze()
	}
}

// thaw forwards on new connections again. What was frozen stays so, as behind a
// router that has lost its table.
func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dark = false
}

func (p *proxy) accept() {
	for {
		in, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(in) })
	}
}

func (p *proxy) serve(in net.Conn) {
	out, err := net.DialTimeout("tcp", p.target, 10*time.Second)
	if err != nil {
		in.Close()
		return
	}
	c := &proxied{in: in, out: out, frozen: make(chan struct{})}
	p.mu.Lock()
	p.conns[c] = true
	if p.dark {
		c.freeze()
	}
	if p.over {
		c.end()
	}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.forward(c, out, in) })
	both.Go(func() { p.forward(c, in, out) })
	both.Wait()
	c.end()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func (c *proxied) end() {
	c.in.Close()
	c.out.Close()
}

// parcel is what was read, and when it may go on.
type parcel struct {
	data []byte
	due  time.Time
}

// forward copies from one side to the other. The end of one direction ends the
// connection, unless it is frozen: then nobody hears of it.
func (p *proxy) forward(c *proxied, to, from net.Conn) {
	// Reading goes on while parcels wait: a delay is no limit on what is under way.
	queue := make(chan parcel, 1024)
	var writer sync.WaitGroup
	writer.Go(func() {
		broken := false
		for one := range queue {
			wait := time.NewTimer(time.Until(one.due))
			select {
			case <-wait.C:
			case <-c.frozen:
			}
			wait.Stop()
			select {
			case <-c.frozen: // swallowed
			default:
				if _, err := to.Write(one.data); err != nil && !broken {
					broken = true
					c.end()
				}
			}
		}
	})
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			p.mu.Lock()
			due := time.Now().Add(p.delay)
			p.mu.Unlock()
			queue <- parcel{append([]byte(nil), buffer[:n]...), due}
		}
		if err != nil {
			break
		}
	}
	close(queue)
	writer.Wait()
	select {
	case <-c.frozen:
	default:
		c.end()
	}
}
