package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"spillway/agent/policy"
)

// EvictRequest names one pod to evict.
type EvictRequest struct {
	Namespace, Name string
	// UID is sent as precondition: a pod of the same name that came since is not touched. Required.
	UID string
	// Grace replaces the pod's own grace period. Whole seconds, at least 1: 0 would delete the object at once and
	// leave its containers running. Nil keeps the pod's own.
	Grace *time.Duration
	// DryRun makes the server go through admission and budgets and change nothing.
	DryRun bool
}

func (r EvictRequest) validate() error {
	switch {
	case r.Namespace == "" || r.Name == "":
		return errors.New("namespace or name is empty")
	case r.UID == "":
		return errors.New("uid is empty")
	case r.Grace != nil && (*r.Grace < time.Second || *r.Grace%time.Second != 0):
		return fmt.Errorf("grace %s: want whole seconds, at least 1", *r.Grace)
	}
	return nil
}

// body is the policy/v1 Eviction of r in JSON.
func (r EvictRequest) body() ([]byte, error) {
	uid := types.UID(r.UID)
	opts := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	if r.Grace != nil {
		s := int64(*r.Grace / time.Second)
		opts.GracePeriodSeconds = &s
	}
	if r.DryRun {
		// Here as well as in the query: admission reads the query, and a proxy that drops it must not turn a
		// rehearsal into an eviction.
		opts.DryRun = []string{metav1.DryRunAll}
	}
	return json.Marshal(&policyv1.Eviction{
		TypeMeta:      metav1.TypeMeta{APIVersion: "policy/v1", Kind: "Eviction"},
		ObjectMeta:    metav1.ObjectMeta{Namespace: r.Namespace, Name: r.Name, Labels: map[string]string{EvictionLabel: "true"}},
		DeleteOptions: opts,
	})
}

// Evict makes one Eviction call and waits at most 3 s for its answer. It never tries again by itself.
// The verbs are those of policy.Verb; see classify for how an answer becomes one. A request that cannot be valid
// (no UID, a grace of 0) is Blocked and not sent. Without an answer the verb is Unknown, except when not even a
// connection came about, so that nothing can have happened: that is Backoff with Code 0.
func (c *Client) Evict(ctx context.Context, r EvictRequest) policy.Answer {
	var sent atomic.Pointer[time.Time]
	answer := c.evict(ctx, r, &sent)
	if at := sent.Load(); at != nil {
		answer.SentAt = *at
	} else if answer.Code != 0 {
		answer.SentAt = time.Now() // the answer overtook the transport's word: no later than this
	}
	return answer
}

// evict notes in sent when the request was on the wire.
func (c *Client) evict(ctx context.Context, r EvictRequest, sent *atomic.Pointer[time.Time]) policy.Answer {
	if err := r.validate(); err != nil {
		return policy.Answer{Verb: policy.Blocked, Message: "not sent: " + err.Error()}
	}
	body, err := r.body()
	if err != nil {
		return policy.Answer{Verb: policy.Blocked, Message: "not sent: " + err.Error()}
	}
	head := &answerHead{}
	ctx, cancel := context.WithTimeout(quiet(ctx), c.evictTimeout)
	defer cancel()
	ctx = context.WithValue(ctx, answerHeadKey{}, head)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { now := time.Now(); sent.Store(&now) }})

	req := c.evicts.Post().Namespace(r.Namespace).Resource("pods").Name(r.Name).SubResource("eviction").
		SetHeader("Content-Type", "application/json").MaxRetries(0).Body(body)
	if r.DryRun {
		req.Param("dryRun", metav1.DryRunAll)
	}
	if err := req.Error(); err != nil {
		return policy.Answer{Verb: policy.Blocked, Message: "not sent: " + err.Error()}
	}
	raw, err := req.Do(ctx).Raw()
	if head.code == 0 {
		verb := policy.Unknown
		if sent.Load() == nil {
			verb = policy.Backoff
		}
		return policy.Answer{Verb: verb, Message: clip(errText(err))}
	}
	if head.cut != nil {
		return policy.Answer{Verb: policy.Unknown, Code: head.code, Message: clip(head.cut.Error())}
	}
	c.used()
	return classify(head.code, head.retryAfter, raw)
}

// Warm opens the connection that Evict uses, and asks nothing where that was of use within the last minute: an idle
// connection is closed after 90 s. The error names what an Eviction would run into now: no route, a bad certificate, 401.
func (c *Client) Warm(ctx context.Context) error {
	if at := c.evictUsed.Load(); at != nil && time.Since(*at) < warmFor {
		return nil
	}
	ctx, cancel := context.WithTimeout(quiet(ctx), c.evictTimeout)
	defer cancel()
	if err := c.evicts.Get().AbsPath("/version").MaxRetries(0).Do(ctx).Error(); err != nil {
		return fmt.Errorf("warm eviction connection: %w", err)
	}
	c.used()
	return nil
}

// used notes that the connection of Evict has just worked.
func (c *Client) used() {
	now := time.Now()
	c.evictUsed.Store(&now)
}

// maxAnswer bounds what is read of an answer; the Status of an Eviction is below 1 KiB.
const maxAnswer = 64 << 10

// answerHead is what the transport saw of an answer, before any decoding by content type.
type answerHead struct {
	code       int
	retryAfter string
	cut        error // the body ended before its end
}

type answerHeadKey struct{}

// answerTap notes the head of an answer and bounds its body.
type answerTap struct{ rt http.RoundTripper }

func (t *answerTap) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	head, ok := req.Context().Value(answerHeadKey{}).(*answerHead)
	if !ok {
		head = &answerHead{}
	}
	defer resp.Body.Close()
	// Read here: what remains of a longer answer is thrown away, and a body of an odd content type is kept.
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	head.code, head.retryAfter, head.cut = resp.StatusCode, resp.Header.Get("Retry-After"), err
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	resp.Header.Set("Content-Type", "application/json")
	resp.ContentLength = int64(len(raw))
	return resp, nil
}

// WrappedRoundTripper lets Close find the transport.
func (t *answerTap) WrappedRoundTripper() http.RoundTripper { return t.rt }

func errText(err error) string {
	if err == nil {
		return "no answer"
	}
	return err.Error()
}
