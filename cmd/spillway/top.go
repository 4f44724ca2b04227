package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"spillway/agent/status"
)

const topKeys = "q: quit   e: explain   up down: choose   by r: rank m: memory g: growth s: score n: name"

func topCommand(stdout io.Writer) *cobra.Command {
	m := top{view: status.TopView{Order: status.ByRank, Keys: topKeys, Colour: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}}
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch this node's margins, its pods by who would go first, and what is decided",
		Long: `Watch this node: its margins and how long they last, its pods with use, growth, score and protection, the newest
decision. Where the output is no terminal, it prints one picture without escape sequences and ends.`,
		Example: `  spillway top
  spillway top --sort growth --interval 500ms
  ` + onNode("-it", "top"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(status.TopOrders, m.view.Order) {
				return fmt.Errorf("--sort %q: want one of %s", m.view.Order, strings.Join(status.TopOrders, ", "))
			}
			if m.every < 100*time.Millisecond {
				return fmt.Errorf("--interval %s: want 100ms or more", m.every)
			}
			m.ctx = cmd.Context()
			first := m.look().(looked)
			if first.err != nil {
				return first.err
			}
			m.status = first.status
			f, ok := stdout.(*os.File)
			if !ok || !term.IsTerminal(int(f.Fd())) {
				m.view.Keys, m.view.Colour = "", false
				_, err := fmt.Fprintln(stdout, status.Top(m.status, &m.view, 160, 1000))
				return err
			}
			_, err := tea.NewProgram(m, tea.WithContext(m.ctx), tea.WithOutput(f)).Run()
			if errors.Is(err, tea.ErrProgramKilled) && m.ctx.Err() != nil {
				return nil // Ctrl-C, or SIGTERM
			}
			return err
		},
	}
	c.Flags().StringVar(&m.socket, "socket", status.DefaultSocket, "the agent's unix socket")
	c.Flags().StringVar(&m.view.Order, "sort", status.ByRank, "order of the pods: "+strings.Join(status.TopOrders, ", "))
	c.Flags().DurationVar(&m.every, "interval", time.Second, "time between two looks")
	return c
}

// top is the screen.
type top struct {
	ctx    context.Context
	socket string
	every  time.Duration

	view          status.TopView
	status        *status.Status
	width, height int
}

// looked is what the agent said; tick asks for the next look; explained is the answer about a pod.
type (
	looked struct {
		status *status.Status
		err    error
	}
	tick      struct{}
	explained struct{ text string }
)

func (m top) look() tea.Msg {
	ctx, cancel := context.WithTimeout(m.ctx, 5*time.Second)
	defer cancel()
	s, err := status.Get(ctx, m.socket)
	return looked{s, err}
}

func (m top) later() tea.Cmd { return tea.Tick(m.every, func(time.Time) tea.Msg { return tick{} }) }

// Init begins to look.
func (m top) Init() tea.Cmd { return m.later() }

// Update follows what happens.
func (m top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tick:
		return m, m.look
	case looked:
		m.view.Fault = ""
		if msg.err != nil {
			m.view.Fault = msg.err.Error()
		} else {
			m.status = msg.status
		}
		return m, m.later()
	case explained:
		m.view.Text = msg.text
	case tea.KeyPressMsg:
		return m.key(msg.String())
	}
	return m, nil
}

func (m top) key(key string) (tea.Model, tea.Cmd) {
	orders := map[string]string{"r": status.ByRank, "m": status.ByMemory, "g": status.ByGrowth, "s": status.ByScore, "n": status.ByName}
	if order, ok := orders[key]; ok {
		m.view.Order, m.view.Text = order, ""
		return m, nil
	}
	switch key {
	case "q", "ctrl+c":
		return m, tea.Quit
	case "esc":
		if m.view.Text == "" {
			return m, tea.Quit
		}
		m.view.Text = ""
	case "up", "k":
		m.choose(-1)
	case "down", "j":
		m.choose(1)
	case "enter", "e":
		if m.view.Text != "" {
			m.view.Text = ""
			return m, nil
		}
		pods := status.Rows(m.status, m.view.Order)
		if len(pods) == 0 {
			return m, nil
		}
		p := pods[m.chosen(pods)]
		if p.Name == "" {
			m.view.Text = "Nobody told the name of " + p.UID + ": it cannot be asked for."
			return m, nil
		}
		return m, func() tea.Msg { return m.explain(p.Namespace + "/" + p.Name) }
	}
	return m, nil
}

// chosen is the place of the selected pod.
func (m *top) chosen(pods []status.Pod) int {
	return max(0, slices.IndexFunc(pods, func(p status.Pod) bool { return p.UID == m.view.Selected }))
}

func (m *top) choose(step int) {
	pods := status.Rows(m.status, m.view.Order)
	if len(pods) > 0 {
		m.view.Selected = pods[min(max(m.chosen(pods)+step, 0), len(pods)-1)].UID
	}
}

func (m top) explain(pod string) explained {
	ctx, cancel := context.WithTimeout(m.ctx, 5*time.Second)
	defer cancel()
	e, err := status.GetExplanation(ctx, m.socket, pod)
	if err != nil {
		return explained{status.Clean(err.Error())}
	}
	var b strings.Builder
	if err := status.WriteExplanation(&b, e); err != nil {
		return explained{status.Clean(err.Error())}
	}
	return explained{b.String()}
}

// View draws.
func (m top) View() tea.View {
	v := tea.NewView("")
	if m.width > 0 {
		v = tea.NewView(status.Top(m.status, &m.view, m.width, m.height))
	}
	v.AltScreen = true
	return v
}
