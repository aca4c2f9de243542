package issuer

import (
	"net/http"
	"time"
)

// Faults makes an issuer misbehave, for tests. The zero value: it does not.
type Faults struct {
	// Delay before each answer. A stop of the server ends it early, with 503.
	Delay time.Duration
	// Status, if not 0, is the HTTP status answered to everything, such as 500.
	Status int
}

// SetFaults replaces the faults, for requests from now on.
func (s *Server) SetFaults(f Faults) { s.faults.Store(&f) }

// stopKey is the context key of the channel that a stop closes.
type stopKey struct{}

// limit bounds requests and plays the faults.
func (s *Server) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.faults.Load(); f != nil {
			if f.Delay > 0 && !wait(r, f.Delay) {
				http.Error(w, "stopping", http.StatusServiceUnavailable)
				return
			}
			if f.Status != 0 {
				http.Error(w, http.StatusText(f.Status), f.Status)
				return
			}
		}
		// The library takes GET too, which would put secrets into URLs.
		if r.URL.Path == tokenPath && r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "use POST", http.StatusMethodNotAllowed)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

// wait is false when the client went away or the server stops.
func wait(r *http.Request, d time.Duration) bool {
	stop, _ := r.Context().Value(stopKey{}).(chan struct{})
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
	case <-r.Context().Done():
	}
	return false
}
