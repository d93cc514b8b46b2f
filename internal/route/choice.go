package route

import (
	"slices"

	"bridge/internal/hint"
)

// Choice is what of a workload's requests is a laptop's. The zero value is all that it can take.
type Choice struct {
	Filter
	// Mirror has the original answer everything, and the laptop get a copy of what callers send. The Filter is zero then.
	Mirror bool `json:"mirror,omitempty"`
}

// ParseChoice reads the values of the flags --header, --path and --mirror. The error has the exit code of a wrong flag.
func ParseChoice(headers []string, path string, mirror bool) (Choice, error) {
	f, err := ParseFilter(headers, path)
	if err != nil {
		return Choice{}, err
	}
	c := Choice{Filter: f, Mirror: mirror}
	if mirror && !c.Filter.all() {
		return Choice{}, hint.Newf(hint.Usage, "leave out --mirror, or the other", "--mirror copies whole connections, and %s would choose among their requests", c.Filter)
	}
	return c, nil
}

// All says whether c is the zero value, or as good.
func (c Choice) All() bool { return c.Filter.all() && !c.Mirror }

// Equal says whether c and other are the same, in the same spelling.
func (c Choice) Equal(other Choice) bool { return slices.Equal(c.Args(), other.Args()) }

// Args are the flags that ParseChoice reads, each with its value behind it.
func (c Choice) Args() []string {
	if c.Mirror {
		return []string{"--mirror"}
	}
	return c.Filter.args()
}

// String is c as it is given in flags, "all requests" for the zero value.
func (c Choice) String() string {
	if c.Mirror {
		return "--mirror"
	}
	return c.Filter.String()
}
