package kube

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway/agent/policy"
)

// maxMessage bounds policy.Answer.Message in bytes.
const maxMessage = 1024

// classify turns the HTTP answer to an Eviction into what has to happen next.
//
// The HTTP status alone is not enough for Accepted: the body must be a Status of "Success". A "Failure" in a 2xx counts
// by its own code; another 2xx, a redirect, or a body that is no Status leaves it Unknown whether the pod was evicted.
//
// A 404 is Gone only when a Status says that the pod is not there; a 404 of a proxy or of a server without this API is
// Blocked. A 409 is Gone on the UID precondition, Backoff otherwise. 400 and the other 4xx would come again: Blocked.
func classify(code int, retryAfter string, body []byte) policy.Answer {
	st, isStatus := parseStatus(body)
	a := policy.Answer{Code: code, RetryAfter: retryDelay(retryAfter, st), Message: clip(serverWords(code, st, isStatus, body))}
	if code >= 200 && code < 300 {
		switch {
		case isStatus && st.Status == metav1.StatusSuccess && (code == http.StatusOK || code == http.StatusCreated):
			a.Verb = policy.Accepted
			return a
		case isStatus && st.Status == metav1.StatusFailure && st.Code >= 300:
			a.Code = int(st.Code) // a refusal in the clothes of a success
		default:
			a.Verb = policy.Unknown
			return a
		}
	}
	a.Verb = verbOf(a.Code, st, isStatus)
	return a
}

func verbOf(code int, st metav1.Status, isStatus bool) policy.Verb {
	switch {
	case code < 400:
		return policy.Unknown
	case code == http.StatusUnauthorized:
		return policy.Unauthorized
	case code == http.StatusNotFound:
		if isStatus && st.Details != nil && st.Details.Kind == "pods" {
			return policy.Gone
		}
		return policy.Blocked
	case code == http.StatusConflict:
		if isStatus && uidConflict(st.Message) {
			return policy.Gone
		}
		return policy.Backoff
	case code == http.StatusTooManyRequests:
		if isStatus && hasCause(st, policyv1.DisruptionBudgetCause) {
			return policy.Budget
		}
		return policy.Backoff
	case code == http.StatusInternalServerError && isStatus && strings.Contains(st.Message, "more than one PodDisruptionBudget"):
		return policy.Blocked
	case code == http.StatusRequestTimeout, code >= 500:
		return policy.Backoff
	default:
		return policy.Blocked
	}
}

// parseStatus reads a metav1.Status; anything else is none.
func parseStatus(body []byte) (metav1.Status, bool) {
	var st metav1.Status
	if err := json.Unmarshal(body, &st); err != nil || st.Kind != "Status" {
		return metav1.Status{}, false
	}
	return st, true
}

// uidConflict recognises the texts of the registry ("the UID in the precondition (a) does not match ...") and of the
// storage below it ("Precondition failed: UID in precondition: a, UID in object meta: b").
func uidConflict(message string) bool {
	return strings.Contains(message, "UID in the precondition") || strings.Contains(message, "UID in precondition")
}

func hasCause(st metav1.Status, cause metav1.CauseType) bool {
	if st.Details == nil {
		return false
	}
	for _, c := range st.Details.Causes {
		if c.Type == cause {
			return true
		}
	}
	return false
}

// retryDelay prefers the Status; a proxy or the priority-and-fairness filter only sets the header. Dates are not used
// by Kubernetes and count as none.
func retryDelay(header string, st metav1.Status) time.Duration {
	seconds := int64(0)
	if st.Details != nil {
		seconds = int64(st.Details.RetryAfterSeconds)
	}
	if seconds <= 0 {
		seconds, _ = strconv.ParseInt(header, 10, 64)
	}
	return time.Duration(min(max(seconds, 0), math.MaxInt64/int64(time.Second))) * time.Second
}

// serverWords is what the server said, with the causes that a Status keeps apart (they name the budget).
func serverWords(code int, st metav1.Status, isStatus bool, body []byte) string {
	if !isStatus {
		if len(body) == 0 {
			return http.StatusText(code)
		}
		return string(body)
	}
	words := st.Message
	if st.Details != nil {
		for _, c := range st.Details.Causes {
			if c.Message != "" && !strings.Contains(words, c.Message) {
				words = strings.TrimSpace(words + " " + c.Message)
			}
		}
	}
	if words == "" && st.Status == metav1.StatusSuccess {
		return ""
	}
	if words == "" {
		return string(st.Reason)
	}
	return words
}

// clip bounds a text to maxMessage bytes of valid UTF-8.
func clip(s string) string {
	if len(s) > maxMessage {
		end := maxMessage
		for end > maxMessage-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	return strings.ToValidUTF8(s, "?")
}
