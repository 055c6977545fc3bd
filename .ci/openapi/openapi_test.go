// This file checks that the API document is one from which the generators of
// others make a client that works: openapi-typescript makes types of what the
// server serves, tsc checks client.ts against them, and Node.js runs it.

// Package openapi tests the API document with generators of others.
package openapi

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ci/program"
)

func TestOpenAPI_GeneratedClient(t *testing.T) {
	modules, err := filepath.Abs("node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(modules); err != nil {
		t.Skip("npm ci was not run here: ", err)
	}
	s := program.Start(t, program.FreePort(t), "", program.Clients())
	s.Register(t, "ada@example.com", "battery staple")

	dir := t.TempDir()
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	client, err := os.ReadFile("client.ts")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"client.ts": string(client), "package.json": `{"type":"module"}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bin, base := filepath.Join(modules, ".bin"), "http://"+s.Address
	for _, command := range [][]string{
		{filepath.Join(bin, "openapi-typescript"), base + "/openapi.json", "-o", "api.d.ts"},
		{filepath.Join(bin, "tsc"), "--strict", "--module", "nodenext", "--target", "es2022", "client.ts"},
		{"node", "client.js"},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(),
			"BASE="+base, "EMAIL="+program.AdminEmail, "PASSWORD="+program.AdminPassword)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", filepath.Base(command[0]), err, out)
		}
	}
}
