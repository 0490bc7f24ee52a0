// Package conformance runs the official Gateway API suite, unmodified; `run` beside this file says with what.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) { conformance.RunConformance(t) }
