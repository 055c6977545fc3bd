package main

import "syscall"

// lowerThreadPriority makes the calling thread the nicest there is: it yields to every other
// thread. On Linux niceness belongs to a thread, and 0 names the calling one (setpriority(2), "C
// library/kernel differences"). A kernel that refuses leaves the priority as it was, which costs latency only.
func lowerThreadPriority() { _ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19) }
