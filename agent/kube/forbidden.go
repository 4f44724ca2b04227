package kube

import apierrors "k8s.io/apimachinery/pkg/api/errors"

// IsForbidden reports whether err is the API server's 403: the call is not in our role.
func IsForbidden(err error) bool { return apierrors.IsForbidden(err) }
