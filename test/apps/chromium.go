package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

var chromiumNeeds = []need{{"chromium", "chromium"}, {"dpkg-query", "dpkg"}}

// browser is a Chromium in the box, reached over its debugging port on the loopback interface.
type browser struct {
	base string
	page string // URL of the heavy page
}

func startChromium(ctx context.Context, b *box) (context.Context, *browser, error) {
	page, err := b.program("page.html")
	if err != nil {
		return ctx, nil, err
	}
	profile := b.file("profile")
	ctx, err = b.serve(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--disable-background-networking", "--no-first-run", "--disable-sync",
		"--remote-debugging-port=0", "--user-data-dir="+profile, "about:blank")
	if err != nil {
		return ctx, nil, err
	}
	var port string
	if err := until(ctx, "wait for Chromium", 40*time.Second, func() bool {
		text, err := os.ReadFile(profile + "/DevToolsActivePort")
		port, _, _ = strings.Cut(string(text), "\n")
		return err == nil && port != ""
	}); err != nil {
		return ctx, nil, err
	}
	if err := pause(ctx, 3*time.Second); err != nil {
		return ctx, nil, err
	}
	b.mark()
	return ctx, &browser{base: "http://127.0.0.1:" + port + "/json/", page: "file://" + page}, pause(ctx, 2*time.Second)
}

// call asks the browser for something.
func (c *browser) call(ctx context.Context, what string) ([]byte, error) {
	ctx, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, c.base+what, nil)
	if err != nil {
		return nil, fmt.Errorf("ask Chromium: %w", err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask Chromium: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	if err != nil {
		return nil, fmt.Errorf("ask Chromium for %s: %w", what, err)
	}
	return text, nil
}

// open opens the page in a tab of its own.
func (c *browser) open(ctx context.Context, query string) (id string, err error) {
	text, err := c.call(ctx, "new?"+url.PathEscape(c.page+query))
	if err != nil {
		return "", err
	}
	var tab struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(text, &tab); err != nil || tab.ID == "" {
		return "", fmt.Errorf("open tab: %q: %w", text, err)
	}
	return tab.ID, nil
}

func chromiumTabs(ctx context.Context, b *box) error {
	ctx, c, err := startChromium(ctx, b)
	if err != nil {
		return err
	}
	var tabs []string
	for i := range 8 {
		id, err := c.open(ctx, fmt.Sprintf("?tab=%d", i))
		if err != nil {
			return err
		}
		tabs = append(tabs, id)
		if err := pause(ctx, 4*time.Second); err != nil {
			return err
		}
	}
	if err := pause(ctx, 8*time.Second); err != nil {
		return err
	}
	for _, id := range tabs {
		if _, err := c.call(ctx, "close/"+id); err != nil {
			return err
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return pause(ctx, 10*time.Second)
}

func chromiumLeak(ctx context.Context, b *box) error {
	ctx, c, err := startChromium(ctx, b)
	if err != nil {
		return err
	}
	if _, err := c.open(ctx, "?leak=1"); err != nil {
		return err
	}
	return pause(ctx, 70*time.Second)
}
