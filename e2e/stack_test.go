package e2e

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/harmony-fleet/fleet/client"
	"github.com/harmony-fleet/fleet/command"
	"github.com/harmony-fleet/fleet/internal/credentials"
	"github.com/harmony-fleet/fleet/internal/testwait"
)

func pingAll(t *testing.T, s *Stack) {
	t.Helper()
	for _, id := range s.DeviceIDs {
		reply, err := s.Client().Ping(t.Context(), id)
		if err != nil {
			t.Fatalf("ping %s: %v", id, err)
		}
		if reply.DeviceID != id {
			t.Fatalf("ping of %s was answered by %s", id, reply.DeviceID)
		}
	}
}

func TestThreeDevicesHaveTheirOwnAgents(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode AuthMode) {
		s := New(t, Options{AuthMode: mode, NumDevices: 3})
		for _, id := range s.DeviceIDs {
			if !strings.HasSuffix(id, "-"+s.Namespace) {
				t.Errorf("device %s does not carry the namespace %s", id, s.Namespace)
			}
		}
		instances(t, s)
		// The status of each is stored, so that nobody is unknown while it is off.
		testwait.For(t, patience, "three stored statuses", func() bool {
			list, err := s.Client().Devices(t.Context(), nil)
			return err == nil && len(list) == 3
		})
	})
}

func TestTwoStacksInOneClusterDoNotMeet(t *testing.T) {
	Require(t)
	var stacks [2]*Stack
	var wg sync.WaitGroup
	for i, mode := range []AuthMode{UserPass, Callout} {
		wg.Go(func() {
			s, err := BringUp(t.Context(), Options{AuthMode: mode})
			if err != nil {
				t.Error(err)
				return
			}
			stacks[i] = s
		})
	}
	wg.Wait()
	for i, s := range stacks {
		if s == nil {
			t.FailNow()
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		pingAll(t, s)
		other := stacks[1-i]
		if _, err := s.Client().Ping(t.Context(), other.DeviceIDs[0]); !errors.Is(err, client.ErrUnknownDevice) {
			t.Errorf("a device of the other stack: %v", err)
		}
	}
	// The end of one leaves the other alone.
	if err := stacks[0].Close(); err != nil {
		t.Error(err)
	}
	pingAll(t, stacks[1])
}

func TestAgentPodThatIsDeletedComesBack(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode AuthMode) {
		s := New(t, Options{AuthMode: mode})
		before, err := s.Client().Ping(t.Context(), s.DeviceIDs[0])
		if err != nil {
			t.Fatal(err)
		}
		now := int64(0)
		if err := s.kube.CoreV1().Pods(s.Namespace).Delete(t.Context(), podName(s.DeviceIDs[0]), metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		testwait.For(t, patience, "another agent for the device", func() bool {
			reply, err := s.Client().Ping(t.Context(), s.DeviceIDs[0])
			return err == nil && reply.Instance != before.Instance
		})
	})
}

func TestDevicesComeBackAfterNATSWasReplaced(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode AuthMode) {
		s := New(t, Options{AuthMode: mode, NumDevices: 2})
		pingAll(t, s)
		before := s.OperatorClient().ConnectedServerId()
		now := int64(0)
		if err := s.kube.CoreV1().Pods(s.Namespace).Delete(t.Context(), partNATS, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		testwait.For(t, patience, "another NATS", func() bool {
			return s.OperatorClient().IsConnected() && s.OperatorClient().ConnectedServerId() != before
		})
		for _, id := range s.DeviceIDs {
			testwait.For(t, patience, id+" to be back", func() bool {
				_, err := s.Client().Ping(t.Context(), id)
				return err == nil
			})
		}
		// They came after the streams: what they said is stored.
		testwait.For(t, patience, "two stored statuses", func() bool {
			list, err := s.Client().Devices(t.Context(), nil)
			return err == nil && len(list) == 2
		})
	})
}

func TestTokenOfOneDeviceIsRefusedForAnother(t *testing.T) {
	s := New(t, Options{NumDevices: 2})
	token, err := s.identity.deviceToken(s.DeviceIDs[0])
	if err != nil {
		t.Fatal(err)
	}
	own, other := s.DeviceIDs[0], s.DeviceIDs[1]
	violations := make(chan error, 16)
	nc, err := s.dial(t.Context(), login{
		name: "thief", inbox: command.DeviceInboxPrefix(own),
		source: credentials.Static(credentials.Credential{Token: token}),
	})
	if err != nil {
		t.Fatal(err)
	}
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err })
	refused := func(what string, try func() error) {
		t.Helper()
		if err := errors.Join(try(), nc.FlushTimeout(patience)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case err := <-violations:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(patience):
			t.Errorf("%s: the broker said nothing", what)
		}
	}
	refused("take its commands", func() error { _, err := nc.SubscribeSync(command.Subscription(other)); return err })
	refused("report its status", func() error { return nc.Publish(command.StatusSubject(other), []byte("{}")) })
	refused("send its heartbeat", func() error { return nc.Publish(command.HeartbeatSubject(other), []byte("{}")) })
	if _, err := nc.SubscribeSync(command.Subscription(own)); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-violations:
		t.Errorf("its own commands: %v", err)
	default:
	}
	pingAll(t, s)
}

func TestPodsRunAsAnyUser(t *testing.T) {
	uid := int64(1000690000) // of the range that OKD gives to a project
	inEachMode(t, func(t *testing.T, mode AuthMode) {
		s := New(t, Options{AuthMode: mode, hooks: hooks{uid: &uid}})
		pingAll(t, s)
		list, err := s.kube.CoreV1().Pods(s.Namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, pod := range list.Items {
			if got := pod.Spec.SecurityContext.RunAsUser; got == nil || *got != uid {
				t.Errorf("Pod %s runs as %v", pod.Name, got)
			}
		}
	})
}

func TestNodePortsThatDoNotAnswerAreReplacedByAForwardedPort(t *testing.T) {
	_, c := kubeOf(t)
	// TEST-NET-1: nothing answers there, ever.
	s := New(t, Options{AuthMode: UserPass, hooks: hooks{provider: given{Cluster: c, nodes: []string{"192.0.2.1"}}}})
	if !strings.HasPrefix(s.NATSURL, "tls://127.0.0.1:") {
		t.Errorf("NATS is reached at %s", s.NATSURL)
	}
	pingAll(t, s)
	url := s.NATSURL
	now := int64(0)
	if err := s.kube.CoreV1().Pods(s.Namespace).Delete(t.Context(), partNATS, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	before := s.OperatorClient().ConnectedServerId()
	testwait.For(t, patience, "another NATS behind the same address", func() bool {
		return s.OperatorClient().IsConnected() && s.OperatorClient().ConnectedServerId() != before && s.OperatorClient().ConnectedUrl() == url
	})
	testwait.For(t, patience, "the device to be back", func() bool {
		_, err := s.Client().Ping(t.Context(), s.DeviceIDs[0])
		return err == nil
	})
}

func TestDebugInfoTellsHowToLookInside(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode AuthMode) {
		s := New(t, Options{AuthMode: mode})
		var out bytes.Buffer
		s.PrintDebugInfo(&out)
		want := []string{s.Namespace, s.NATSURL, s.CAFile, s.Kubeconfig(), s.DeviceIDs[0], "kubectl -n " + s.Namespace + " get pods", "logs " + podName(s.DeviceIDs[0]) + " -c", "logs nats -f", "unless " + EnvKeep + "=1"}
		if mode == Callout {
			want = append(want, s.AdminToken, "logs fleet-callout -f", "logs fleet-oidc -f")
		} else {
			want = append(want, s.secrets.ops)
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("no %q in:\n%s", w, out.String())
			}
		}
	})
}

func TestOneDeviceWithNoneNamed(t *testing.T) {
	s := New(t, Options{AuthMode: UserPass})
	if len(s.DeviceIDs) != 1 || !slices.Equal(s.DeviceIDs, []string{"vm-device-00-" + s.Namespace}) {
		t.Errorf("devices %v", s.DeviceIDs)
	}
	if s.AdminToken != "" {
		t.Error("there is a token in userpass mode")
	}
}
