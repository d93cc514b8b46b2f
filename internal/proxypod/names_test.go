package proxypod

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Whatever a deployment is called, what bridge creates for it has names that the API server takes, and no other deployment's.
func TestNamesAreValidAndApart(t *testing.T) {
	seen := map[string]string{}
	for _, pattern := range []string{"a", "a.", "ab-c.d", "abcd.efgh", "a-b"} {
		for n := 1; n <= 253; n++ {
			target := strings.TrimRight(strings.Repeat(pattern, n)[:n], "-.")
			lease := LeaseName("deployment", target)
			problems := slices.Concat(validation.IsDNS1123Subdomain(lease), validation.IsDNS1123Subdomain(KeeperName(lease)), validation.IsValidLabelValue(LabelValue(lease)),
				validation.IsDNS1035Label(OriginalsName(lease)), validation.IsDNS1035Label(ProxiesName(lease)))
			if len(problems) > 0 || len(lease) > maxName || len(KeeperName(lease)) > maxName {
				t.Errorf("%s: %s, %s: %q", target, lease, OriginalsName(lease), problems)
			}
			for _, name := range []string{"Lease " + lease, "Service " + OriginalsName(lease)} {
				if other, taken := seen[name]; taken && other != target {
					t.Errorf("%s and %s: %s", other, target, name)
				}
				seen[name] = target
			}
		}
	}
}
