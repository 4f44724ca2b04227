// Package cache says where the test harness keeps what it builds and fetches.
package cache

import (
	"fmt"
	"os"
	"path/filepath"
)

// Dir is $SPILLWAY_CACHE, or spillway in the user's cache folder.
func Dir() (string, error) {
	if dir := os.Getenv("SPILLWAY_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache folder: %w", err)
	}
	return filepath.Join(dir, "spillway"), nil
}
