// Workloads: what drives a whole system, the same on a host and on bare metal.
//
// Two kinds. A *replay* (Replay/) takes the allocations of a real kernel from a packed trace (Trace/) and
// does them again against the live allocators. A *seeded history* (Histories/) is a long random sequence of
// operations on one layer that depends on its seed only and ends with a checksum, so that "the kernel runs
// the same code as the tests" is an equation between two numbers. XCTest, the tool `strata` and the console
// all run these; none of them keeps a workload of its own.
//
// Everything here is core code: no Array, String or class, memory from the instance under test.

import MemoryPrimitives
