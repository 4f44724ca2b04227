package status

// Figure is v where it is known, else nil: absent figures are null.
func Figure[T any](v T, known bool) *T {
	if !known {
		return nil
	}
	return &v
}
