package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"bridge/pkg/tunnel"
)

// dialTimeoutFlag adds --dial-timeout to cmd, whose connections it bounds.
func dialTimeoutFlag(cmd *cobra.Command, connections string, timeout *time.Duration) {
	*timeout = 30 * time.Second
	cmd.Flags().Func("dial-timeout", "how long "+connections+" waits for the tunnel and its target; then it is reset (default 30s)", func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			return errors.New("write for example 10s or 1m")
		}
		*timeout = d
		return nil
	})
}

// resumeWindowFlag adds --resume-window to cmd; it sets window as tunnel.Client wants it.
func resumeWindowFlag(cmd *cobra.Command, window *time.Duration) {
	cmd.Flags().Func("resume-window", "how long open connections wait for the tunnel when it is cut, up to 1h; 0: they are reset at once (default 1m)", func(s string) error {
		d, err := time.ParseDuration(s)
		switch {
		case err != nil:
			return errors.New("not a duration; write for example 30s or 5m")
		case d < 0 || d > tunnel.MaxResumeWindow:
			return fmt.Errorf("want 0 to %v", tunnel.MaxResumeWindow)
		case d == 0:
			d = -1 // tunnel.Client's zero is its default
		case d < time.Second:
			return errors.New("less than 1s is too short to make another connection; 0 turns it off")
		}
		*window = d
		return nil
	})
}
