package cluster

import (
	"strings"
	"testing"
	"time"

	"spillway/test/vm"
)

func TestVMOptions(t *testing.T) {
	o := VMOptions{}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	if o.Name != "node2" || o.Kernel != vm.Kernel6_1 || o.MemoryMiB != 6144 || o.CPUs != 2 || o.Margin != 2<<30 || o.ReadyTimeout != 3*time.Minute {
		t.Errorf("defaults %+v", o)
	}
	for name, o := range map[string]VMOptions{
		"name of the machine's node": {Name: nodeName},
		"name climbs":                {Name: "../x"},
		"too small":                  {MemoryMiB: 512},
		"negative margin":            {Margin: -1},
		"negative time":              {ReadyTimeout: -1},
		"negative processors":        {CPUs: -1},
	} {
		t.Run(name, func(t *testing.T) {
			if err := o.complete(); err == nil || !strings.Contains(err.Error(), "virtual machine") {
				t.Errorf("error %v, want one about the virtual machine", err)
			}
		})
	}
}

func TestVMsGetAddressesOfTheirOwn(t *testing.T) {
	c := &Cluster{}
	facts := Facts{VMs: []VMFacts{{Name: "a", IP: "192.168.77.10"}}}
	v, err := c.place(VMOptions{Name: "b"}, facts)
	if err != nil {
		t.Fatal(err)
	}
	if v.IP() != "192.168.77.11" || v.info.PodSubnet != "10.88.11.0/24" {
		t.Errorf("second machine %+v", v.info)
	}
	if _, err := c.place(VMOptions{Name: "a"}, facts); err == nil || !strings.Contains(err.Error(), "of that name") {
		t.Errorf("the same name: %v", err)
	}
}
