package status

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestRecordingTravelsWhole(t *testing.T) {
	data := bytes.Repeat([]byte("recording "), 300_000)
	for _, tc := range []struct {
		name string
		view func(io.Writer) error
		want []byte
		err  string
	}{
		{"whole", func(w io.Writer) error { _, err := w.Write(data); return err }, data, ""},
		{"nothing yet", func(io.Writer) error { return errors.New("nothing was recorded yet") }, nil, "nothing was recorded yet"},
		{"standalone", nil, nil, "records nothing"},
		{"breaks off", func(w io.Writer) error {
			w.Write(data)
			return errors.New("disk")
		}, nil, "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := socketPath(t)
			_, stop := serveViews(t, path, Views{Recording: tc.view})
			defer stop()
			var got bytes.Buffer
			err := GetRecording(t.Context(), path, &got)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if tc.err == "" && !bytes.Equal(got.Bytes(), tc.want) {
				t.Errorf("%d bytes, want %d", got.Len(), len(tc.want))
			}
		})
	}
}
