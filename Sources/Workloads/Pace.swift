// The answer of an observer to a workload that reports how far it is.

/// Whether a workload continues, as its observer decides.
package enum Pace: Sendable { case goOn, stop }
