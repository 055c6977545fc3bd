//go:build !linux

package main

// lowerThreadPriority does nothing where niceness belongs to the whole process.
func lowerThreadPriority() {}
