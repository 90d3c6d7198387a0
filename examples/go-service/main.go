// A small HTTP service to put under Seawall: the same paths, answers and faults as `seawall demo-service`, in plain Go.
// What a service must do is little: listen on PORT, answer its probes, stop when told to, and, if it can be primary,
// refuse an older epoch.
//
//   - GET /health  200 unless hung;  GET /ready  200 or, after POST /fault/unready, 503
//   - POST /promote, POST /demote  with Seawall-Epoch: the instance's role
//   - with a stream, POST of anything else: adds ?amount=1 to the balance (ledger.go)
//   - POST /fault/hang, /fault/crash, /fault/slow?ms=500, /fault/unready, /fault/exit?code=3, /fault/none,
//     /fault/close (lives on without its port), /fault/garbage (answers what is no HTTP), /fault/fail (answers 500),
//     /fault/deaf (reads its stream no more)
//   - anything else  200 with instance, role and epoch as JSON, after -latency-ms
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// stopPatience is for requests under way after the service was told to stop. Seawall has drained it before that, so
// normally there are none; it must be shorter than terminationGracePeriodSeconds.
const stopPatience = 5 * time.Second

type service struct {
	name            string
	instance        string
	latency         time.Duration
	refusePromotion bool
	listener        net.Listener
	ledger          *ledger // with a stream

	hung    atomic.Bool
	unready atomic.Bool
	closed  atomic.Bool
	garbage atomic.Bool
	fails   atomic.Bool
	slowMs  atomic.Int64
	served  atomic.Uint64

	// role guards the pair below: epoch and primary change together.
	role    sync.Mutex
	epoch   uint64
	primary bool
}

func main() {
	log.SetFlags(0) // Seawall stamps each line.
	port := flag.Int("port", numberFrom("PORT", 9000), "the port to listen on (PORT)")
	name := flag.String("name", "demo", "the name it answers with")
	latencyMs := flag.Int("latency-ms", 0, "each answer takes so many milliseconds")
	startMs := flag.Int("start-ms", 0, "not ready for so many milliseconds after the start")
	refuse := flag.Bool("refuse-promotion", false, "refuse to be promoted")
	exit := flag.Int("exit", -1, "exit with this code instead of serving")
	flag.Parse()
	if *exit >= 0 {
		log.Printf("%s: exiting with %d as told", *name, *exit)
		os.Exit(*exit)
	}

	instance := os.Getenv("SEAWALL_INSTANCE")
	if instance == "" {
		instance = *name
	}
	time.Sleep(time.Duration(*startMs) * time.Millisecond)
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(*port)))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s listens on %s\n", instance, listener.Addr())

	s := &service{
		name:            *name,
		instance:        instance,
		latency:         time.Duration(*latencyMs) * time.Millisecond,
		refusePromotion: *refuse,
		listener:        listener,
		ledger:          openLedger(instance),
	}
	if err := s.run(); err != nil {
		log.Fatal(err)
	}
}

// run answers until told to stop, then lets requests under way finish.
func (s *service) run() error {
	// SIGTERM on Linux; on Windows Seawall sends Ctrl+Break, which Go delivers as os.Interrupt.
	told, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() {
		if err := server.Serve(s.listener); !s.closed.Load() {
			ended <- err
		}
	}()

	select {
	case err := <-ended:
		return err
	case <-told.Done():
	}
	fmt.Println("told to stop: finishing requests")
	patience, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	return server.Shutdown(patience)
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for s.hung.Load() {
		time.Sleep(100 * time.Millisecond)
	}
	if s.garbage.Load() {
		answerGarbage(w)
		return
	}
	post := r.Method == http.MethodPost
	fault, isFault := strings.CutPrefix(r.URL.Path, "/fault/")
	switch {
	case r.URL.Path == "/health":
		answer(w, http.StatusOK, map[string]any{"health": "ok"})
	case r.URL.Path == "/ready" && (s.unready.Load() || s.ledger != nil && !s.ledger.ready()):
		answer(w, http.StatusServiceUnavailable, map[string]any{"ready": false})
	case r.URL.Path == "/ready":
		answer(w, http.StatusOK, map[string]any{"ready": true})
	case post && r.URL.Path == "/promote":
		s.promote(w, r)
	case post && r.URL.Path == "/demote":
		s.demote(w)
	case post && isFault:
		s.fault(w, fault, r.URL.Query())
	case post && s.ledger != nil:
		s.post(w, r)
	default:
		s.serve(w)
	}
}

// promote makes this instance the primary. An older epoch must never win: that is all a service has to do to be safe.
// A service with state of its own would store the epoch beside it and check it with each write; a stream does that.
func (s *service) promote(w http.ResponseWriter, r *http.Request) {
	if s.refusePromotion {
		answer(w, http.StatusConflict, map[string]any{"error": "told to refuse"})
		return
	}
	// Without the header the epoch is 0, which is older than any that was ever given.
	epoch, _ := strconv.ParseUint(r.Header.Get("Seawall-Epoch"), 10, 64)
	s.role.Lock()
	defer s.role.Unlock()
	if epoch < s.epoch {
		text := fmt.Sprintf("epoch %d is older than %d", epoch, s.epoch)
		answer(w, http.StatusConflict, map[string]any{"error": text})
		return
	}
	if s.ledger != nil {
		// Seawall has waited for the cursor; but the one that it saw may be of the process before this one, arrived late.
		end, _ := strconv.ParseInt(r.Header.Get("Seawall-Stream-End"), 10, 64)
		if err := s.ledger.promote(epoch, end); err != nil {
			answer(w, http.StatusConflict, map[string]any{"error": err.Error()})
			return
		}
	}
	s.epoch, s.primary = epoch, true
	fmt.Printf("primary in epoch %d\n", epoch)
	answer(w, http.StatusOK, map[string]any{"role": "primary"})
}

func (s *service) demote(w http.ResponseWriter) {
	if s.ledger != nil {
		s.ledger.demote()
	}
	s.role.Lock()
	defer s.role.Unlock()
	s.primary = false
	fmt.Println("stepped down")
	answer(w, http.StatusOK, map[string]any{"role": "standby"})
}

func (s *service) fault(w http.ResponseWriter, which string, query url.Values) {
	number := func(name string, fallback int64) int64 {
		if value, err := strconv.ParseInt(query.Get(name), 10, 32); err == nil && value >= 0 {
			return value
		}
		return fallback
	}
	log.Printf("fault: %s %s", which, query.Encode())
	switch which {
	case "hang":
		s.hung.Store(true)
	case "crash":
		crash()
	case "exit":
		os.Exit(int(number("code", 1)))
	case "slow":
		s.slowMs.Store(number("ms", 500))
	case "unready":
		s.unready.Store(true)
	case "close":
		s.closed.Store(true)
		s.listener.Close()
	case "deaf":
		if s.ledger != nil {
			s.ledger.deaf.Store(true)
		}
	case "garbage":
		s.garbage.Store(true)
		answerGarbage(w)
		return
	case "fail":
		s.fails.Store(true)
	case "none":
		s.slowMs.Store(0)
		s.unready.Store(false)
		s.fails.Store(false)
	default:
		answer(w, http.StatusNotFound, map[string]any{"error": "faults: hang, crash, exit, slow, unready, close, garbage, fail, deaf, none"})
		return
	}
	answer(w, http.StatusOK, map[string]any{"fault": which})
}

func (s *service) serve(w http.ResponseWriter) {
	time.Sleep(s.latency + time.Duration(s.slowMs.Load())*time.Millisecond)
	if s.fails.Load() {
		answer(w, http.StatusInternalServerError, map[string]any{"error": "told to fail"})
		return
	}
	s.role.Lock()
	epoch, role := s.epoch, "standby"
	if s.primary {
		role = "primary"
	}
	s.role.Unlock()
	var balance *ledgerState
	if s.ledger != nil {
		balance = s.ledger.state()
	}
	answer(w, http.StatusOK, struct {
		Service  string `json:"service"`
		Instance string `json:"instance"`
		Pid      int    `json:"pid"`
		Role     string `json:"role"`
		Epoch    uint64 `json:"epoch"`
		Served   uint64 `json:"served"`
		*ledgerState
	}{s.name, s.instance, os.Getpid(), role, epoch, s.served.Add(1), balance})
}

// post adds an amount to the balance, once for each Idempotency-Key.
func (s *service) post(w http.ResponseWriter, r *http.Request) {
	time.Sleep(s.latency + time.Duration(s.slowMs.Load())*time.Millisecond)
	amount := int64(1)
	if text := r.URL.Query().Get("amount"); text != "" {
		var err error
		if amount, err = strconv.ParseInt(text, 10, 64); err != nil {
			answer(w, http.StatusBadRequest, map[string]any{"error": "amount is a whole number"})
			return
		}
	}
	status, body := s.ledger.post(amount, r.Header.Get("Idempotency-Key"))
	answer(w, status, body)
}

// crash ends the process the hard way (SIGABRT on Linux). A panic in a handler alone would be recovered by net/http.
func crash() {
	debug.SetTraceback("crash")
	go panic("told to crash")
	select {}
}

// answerGarbage takes the connection from net/http and answers what no client can read.
func answerGarbage(w http.ResponseWriter) {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer connection.Close()
	_, _ = connection.Write([]byte("\x00\x01 this is no HTTP\r\n\r\n"))
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that went away is no news.
	_ = json.NewEncoder(w).Encode(body)
}

func numberFrom(variable string, fallback int) int {
	if number, err := strconv.Atoi(os.Getenv(variable)); err == nil {
		return number
	}
	return fallback
}
