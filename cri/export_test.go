package cri

// DialPaths is Dial with other sockets in the place of the well-known ones.
func DialPaths(o Options, paths ...string) (*Client, error) {
	c, err := Dial(o)
	if err == nil {
		c.paths = paths
	}
	return c, err
}
