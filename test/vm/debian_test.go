package vm

import "testing"

func TestFirstMirror(t *testing.T) {
	for _, tc := range []struct{ name, addresses, want string }{
		{"one archive, two suites", "http://mirror.example/debian/\nhttp://mirror.example/debian/\n", "http://mirror.example/debian"},
		{"a CD before it", "cdrom:[Debian GNU/Linux 12]/\nhttps://mirror.example/debian\n", "https://mirror.example/debian"},
		{"a list of mirrors", "mirror+file:/etc/apt/mirrors/debian.list/\n", "mirror+file:/etc/apt/mirrors/debian.list"},
		{"a CD alone", "cdrom:[Debian GNU/Linux 12]/\n", ""},
		{"no archive", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := firstMirror(tc.addresses); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}
