package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// maxConfigz bounds what is read of /configz; a real one is below 10 KiB.
const maxConfigz = 1 << 20

// KubeletConfigz gets the configuration that this node's kubelet runs with, flags included, from
// https://<InternalIP>:<port>/configz. It needs the right get on nodes/configz (kubelets before 1.33: nodes/proxy).
//
// Our token goes only to a kubelet whose serving certificate verifies against the cluster CA for that address: TLS
// ends the connection before any request is written otherwise. There is no way to skip that; kubelets with a
// self-signed certificate (the default without serverTLSBootstrap) are told by their files instead.
func (c *Client) KubeletConfigz(ctx context.Context, n Node) (KubeletConfig, error) {
	return fromKubelet(ctx, c, n, question[KubeletConfig]{
		name: "configz", path: "/configz", right: "nodes/configz (kubelets before 1.33: nodes/proxy)", read: readConfigz,
	})
}

// question is a GET that the kubelet answers over HTTPS.
type question[T any] struct {
	name  string // in errors
	path  string
	right string // that a refusal asks for
	read  func(io.Reader) (T, error)
}

// fromKubelet asks the kubelet of a node at one of its InternalIPs after the other, for 3 s in all.
func fromKubelet[T any](ctx context.Context, c *Client, n Node, q question[T]) (T, error) {
	var none T
	if len(n.InternalIPs) == 0 || n.KubeletPort == 0 {
		return none, fmt.Errorf("get %s of node %s: the Node object has no InternalIP or no kubelet port", q.name, n.Name)
	}
	client, err := c.kubeletClient()
	if err != nil {
		return none, fmt.Errorf("get %s of node %s: %w", q.name, n.Name, err)
	}
	defer utilnet.CloseIdleConnectionsFor(client.Transport)
	ctx, cancel := context.WithTimeout(quiet(ctx), evictTimeout)
	defer cancel()
	var failed []error
	for _, ip := range n.InternalIPs {
		out, err := q.get(ctx, client, "https://"+net.JoinHostPort(ip, strconv.Itoa(n.KubeletPort))+q.path)
		if err == nil {
			return out, nil
		}
		failed = append(failed, err)
		var status *kubeletStatusError
		if errors.As(err, &status) {
			break // it answered: another address of the same kubelet will say the same
		}
	}
	return none, fmt.Errorf("get %s of node %s: %w", q.name, n.Name, errors.Join(failed...))
}

func (q question[T]) get(ctx context.Context, client *http.Client, u string) (T, error) {
	var none T
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return none, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return none, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return none, &kubeletStatusError{u, resp.StatusCode, q.right}
	}
	out, err := q.read(resp.Body)
	if err != nil {
		return none, fmt.Errorf("%s: %w", u, err)
	}
	return out, nil
}

// kubeletClient has our token and the cluster CA, and neither proxy nor redirects.
func (c *Client) kubeletClient() (*http.Client, error) {
	switch {
	case c.cfg.Insecure:
		return nil, errors.New("the kubeconfig skips TLS verification, so the kubelet's certificate cannot be verified")
	case c.cfg.CAFile == "" && len(c.cfg.CAData) == 0:
		return nil, errors.New("no cluster CA is configured, so the kubelet's certificate cannot be verified")
	case c.cfg.BearerToken == "" && c.cfg.BearerTokenFile == "":
		return nil, errors.New("no token is configured")
	}
	cfg := &rest.Config{
		BearerToken:     c.cfg.BearerToken,
		BearerTokenFile: c.cfg.BearerTokenFile,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.cfg.CAFile, CAData: c.cfg.CAData},
		UserAgent:       c.cfg.UserAgent,
		Proxy:           func(*http.Request) (*url.URL, error) { return nil, nil },
		Dial:            c.dial,
	}
	made, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	h := *made
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &h, nil
}

// kubeletStatusError is an answer other than 200.
type kubeletStatusError struct {
	url   string
	code  int
	right string // that a refusal asks for
}

func (e *kubeletStatusError) Error() string {
	switch e.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Sprintf("%s: %d %s: our service account needs the right get on %s", e.url, e.code, http.StatusText(e.code), e.right)
	default:
		return fmt.Sprintf("%s: %d %s", e.url, e.code, http.StatusText(e.code))
	}
}

func readConfigz(r io.Reader) (KubeletConfig, error) {
	body, err := io.ReadAll(io.LimitReader(r, maxConfigz+1))
	if err != nil {
		return KubeletConfig{}, err
	}
	return parseConfigz(body)
}

// parseConfigz reads {"kubeletconfig": {...}}. The kubelet has already applied every default and drop-in, so an
// absent field is an empty one: evictionHard without memory.available means no memory threshold.
func parseConfigz(body []byte) (KubeletConfig, error) {
	if len(body) > maxConfigz {
		return KubeletConfig{}, fmt.Errorf("more than %d bytes", maxConfigz)
	}
	var top struct {
		Config map[string]any `json:"kubeletconfig"`
	}
	if err := json.Unmarshal(body, &top); err != nil {
		return KubeletConfig{}, err
	}
	if top.Config == nil {
		return KubeletConfig{}, errors.New("kubeletconfig: missing")
	}
	k, err := effectiveConfig(top.Config)
	if err != nil {
		return KubeletConfig{}, fmt.Errorf("kubeletconfig: %w", err)
	}
	k.Source = "configz"
	return k, nil
}
