package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// appendPatience is how long an append is repeated whose outcome is not known; longer than the streams need for
	// another leader.
	appendPatience = 4 * time.Second
	// retryPause lies between two attempts.
	retryPause = 50 * time.Millisecond
	// readWait is the longest wait of one read for the next entry; after it the cursor is said again.
	readWait = time.Second
	// primaryPause: a primary need not say often how far it has read, as it knows what it wrote.
	primaryPause = 50 * time.Millisecond
	// keptKeys is how many requests are known when they come again: the newest so many.
	keptKeys = 4096
	// longestAnswer bounds what is read of an answer of the API.
	longestAnswer = 4 << 20
)

// errFenced: a newer term has begun, so somebody else is primary.
var errFenced = errors.New("another is primary by now; nothing was added")

// A ledger keeps its balance in a stream of Seawall's, so that it survives the process and the machine. The primary
// appends what it accepts and answers once that is acknowledged. Everybody reads the stream, the primary too, and says by
// a cursor how far: Seawall promotes nobody who has not read it to its end.
type ledger struct {
	url      string // URL/api/v1/streams/NAME
	instance string
	client   http.Client

	primary atomic.Bool
	deaf    atomic.Bool

	// term is held while something is appended: one after the other.
	term  sync.Mutex
	epoch uint64
	seq   uint64
	// pending is an entry whose outcome is not known yet: nothing else may take its number.
	pending *entry

	// book guards what the entries say.
	book     sync.Mutex
	next     int64 // the offset that is read next
	balance  int64
	keys     map[string]int64 // requests that were done, and the balance after each
	order    []string
	caughtUp bool // everything that was there at the start has been read
}

// An entry carries the balance after it, so what the stream has forgotten is not needed.
type entry struct {
	Amount  int64  `json:"amount"`
	Balance *int64 `json:"balance"`
	Key     string `json:"key,omitempty"`
}

type ledgerState struct {
	Balance int64 `json:"balance"`
	Entries int64 `json:"entries"`
}

// apiAnswer has what is needed of the API's JSON answers.
type apiAnswer struct {
	Offset int64   `json:"offset"`
	Epoch  *uint64 `json:"epoch"`
	First  int64   `json:"first"`
	Next   *int64  `json:"next"`
	Error  string  `json:"error"`
}

// openLedger opens the ledger in the stream that Seawall named in the environment; nil if it named none.
func openLedger(instance string) *ledger {
	api, stream := os.Getenv("SEAWALL_API"), os.Getenv("SEAWALL_STREAM")
	if api == "" || stream == "" {
		return nil
	}
	l := &ledger{
		url:      api + "/api/v1/streams/" + stream,
		instance: instance,
		client:   http.Client{Timeout: readWait + 6*time.Second},
		keys:     map[string]int64{},
	}
	go l.follow()
	return l
}

func (l *ledger) ready() bool {
	l.book.Lock()
	defer l.book.Unlock()
	return l.caughtUp
}

func (l *ledger) state() *ledgerState {
	l.book.Lock()
	defer l.book.Unlock()
	return &ledgerState{l.balance, l.next}
}

// promote makes this instance primary, in a term that begins at offset end.
func (l *ledger) promote(epoch uint64, end int64) error {
	l.term.Lock()
	defer l.term.Unlock()
	if !l.hasRead(end) {
		return fmt.Errorf("it has not read its stream up to %d", end)
	}
	if epoch > l.epoch {
		l.epoch, l.seq, l.pending = epoch, 0, nil
	}
	l.primary.Store(true)
	return nil
}

// demote ends the term; nothing is on its way when it returns.
func (l *ledger) demote() {
	l.term.Lock()
	defer l.term.Unlock()
	l.primary.Store(false)
}

// post adds an amount. A key that was done already is not done again.
func (l *ledger) post(amount int64, key string) (int, map[string]any) {
	l.term.Lock()
	defer l.term.Unlock()
	if !l.primary.Load() {
		return http.StatusConflict, map[string]any{"error": "a standby takes nothing"}
	}
	if pending := l.pending; pending != nil {
		if _, err := l.append(pending); err != nil {
			return http.StatusServiceUnavailable, map[string]any{"error": err.Error()}
		}
	}
	l.book.Lock()
	known, done := l.keys[key]
	balance := l.balance + amount
	l.book.Unlock()
	if done {
		return http.StatusOK, map[string]any{"balance": known, "repeated": true}
	}
	offset, err := l.append(&entry{Amount: amount, Balance: &balance, Key: key})
	if err != nil {
		return http.StatusServiceUnavailable, map[string]any{"error": err.Error()}
	}
	return http.StatusOK, map[string]any{"balance": balance, "offset": offset, "epoch": l.epoch, "repeated": false}
}

// append appends one entry and returns its offset, once it is acknowledged and in the book.
func (l *ledger) append(e *entry) (int64, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return 0, err
	}
	// A term has a producer of its own, which counts from 1: with producer and number a repetition adds nothing.
	url := fmt.Sprintf("%s?producer=%s-%d&seq=%d", l.url, l.instance, l.epoch, l.seq+1)
	until := time.Now().Add(appendPatience)
	for {
		status, told, err := l.send(http.MethodPost, url, string(body), l.epoch)
		switch {
		case err == nil && status == http.StatusOK:
			l.seq++
			l.pending = nil
			l.apply(told.Offset, e)
			l.hasRead(told.Offset + 1)
			return told.Offset, nil
		case err == nil && status == http.StatusConflict && told.Epoch != nil:
			l.primary.Store(false)
			l.pending = nil
			return 0, errFenced
		case err == nil && status >= 400 && status < 500:
			return 0, fmt.Errorf("%d: %s", status, told.Error)
		}
		if time.Now().After(until) {
			l.pending = e
			return 0, fmt.Errorf("it is not known whether it was added: %d %s %v", status, told.Error, err)
		}
		time.Sleep(retryPause)
	}
}

// hasRead waits until the entries before end are in the book.
func (l *ledger) hasRead(end int64) bool {
	for until := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		l.book.Lock()
		next := l.next
		l.book.Unlock()
		if next >= end || time.Now().After(until) {
			return next >= end
		}
	}
}

// apply takes an entry at its offset, each once, whoever brings it first.
func (l *ledger) apply(offset int64, e *entry) {
	l.book.Lock()
	defer l.book.Unlock()
	if offset != l.next {
		return
	}
	l.next++
	// What somebody else has written there changes nothing.
	if e.Balance == nil {
		return
	}
	l.balance = *e.Balance
	if e.Key != "" {
		l.keys[e.Key] = l.balance
		l.order = append(l.order, e.Key)
	}
	if len(l.order) > keptKeys {
		delete(l.keys, l.order[0])
		l.order = l.order[1:]
	}
}

// follow reads the stream for as long as the process lives.
func (l *ledger) follow() {
	// A process begins with an empty book, so it says so before it is ready: what the one before it had read is gone.
	for {
		err := l.sayCursor(0)
		if err == nil {
			break
		}
		log.Printf("the stream cannot be reached yet: %v", err)
		time.Sleep(4 * retryPause)
	}
	for !l.deaf.Load() {
		if err := l.readMore(); err != nil {
			log.Printf("the stream cannot be read: %v; trying again", err)
			time.Sleep(retryPause)
		}
		if l.primary.Load() {
			time.Sleep(primaryPause)
		}
	}
}

func (l *ledger) readMore() error {
	l.book.Lock()
	from, caughtUp := l.next, l.caughtUp
	l.book.Unlock()
	wait := time.Duration(0)
	if caughtUp {
		wait = readWait
	}
	url := fmt.Sprintf("%s?from=%d&limit=1000&wait=%.0fs", l.url, from, wait.Seconds())
	response, err := l.do(http.MethodGet, url, "", 0)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, longestAnswer))
	if err != nil {
		return err
	}
	var told apiAnswer
	if response.StatusCode != http.StatusOK {
		_ = json.Unmarshal(body, &told) // without it the status alone says enough
	}
	switch {
	case l.deaf.Load():
		return nil
	case response.StatusCode == http.StatusOK:
	case response.StatusCode == http.StatusNotFound: // nobody has written to it yet
		l.setCaughtUp()
		time.Sleep(retryPause)
		return nil
	case response.StatusCode == http.StatusGone: // the oldest are not kept any more: the next one has the balance
		l.book.Lock()
		l.next = told.First
		l.book.Unlock()
		return nil
	case response.StatusCode == http.StatusBadRequest && told.Next != nil: // another stream of the same name
		l.book.Lock()
		l.next, l.balance, l.keys, l.order, l.caughtUp = 0, 0, map[string]int64{}, nil, false
		l.book.Unlock()
		return l.sayCursor(0)
	default:
		return fmt.Errorf("%d: %s", response.StatusCode, told.Error)
	}
	lines := json.NewDecoder(strings.NewReader(string(body)))
	for {
		var line struct {
			Offset int64  `json:"offset"`
			Data   string `json:"data"`
		}
		if err := lines.Decode(&line); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		var e entry
		_ = json.Unmarshal([]byte(line.Data), &e) // an entry of somebody else's is passed over
		l.apply(line.Offset, &e)
	}
	l.book.Lock()
	next := l.next
	l.book.Unlock()
	// Also when nothing is new: what the process before this one had sent may have arrived late and stand there instead.
	if err := l.sayCursor(next); err != nil {
		return err
	}
	end, err := strconv.ParseInt(response.Header.Get("Seawall-End"), 10, 64)
	if err != nil {
		end = math.MaxInt64
	}
	if next >= end {
		l.setCaughtUp()
	}
	return nil
}

func (l *ledger) setCaughtUp() {
	l.book.Lock()
	l.caughtUp = true
	l.book.Unlock()
}

// sayCursor says how far this instance has read: that is what Seawall promotes by.
func (l *ledger) sayCursor(offset int64) error {
	url := fmt.Sprintf("%s/cursors/%s?offset=%d", l.url, l.instance, offset)
	status, told, err := l.send(http.MethodPut, url, "", 0)
	if err == nil && status != http.StatusOK && status != http.StatusNotFound {
		err = fmt.Errorf("%d: %s", status, told.Error)
	}
	return err
}

func (l *ledger) send(method, url, body string, epoch uint64) (int, apiAnswer, error) {
	var told apiAnswer
	response, err := l.do(method, url, body, epoch)
	if err != nil {
		return 0, told, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, longestAnswer))
	if err != nil {
		return response.StatusCode, told, err
	}
	_ = json.Unmarshal(text, &told) // without it the status alone says enough
	return response.StatusCode, told, nil
}

func (l *ledger) do(method, url, body string, epoch uint64) (*http.Response, error) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if epoch > 0 {
		request.Header.Set("Seawall-Epoch", strconv.FormatUint(epoch, 10))
	}
	if token := os.Getenv("SEAWALL_TOKEN"); token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	return l.client.Do(request)
}
