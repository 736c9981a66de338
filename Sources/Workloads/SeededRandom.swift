// Random numbers that are the same on every machine: SplitMix64 (Steele, Lea, Flood: "Fast
// splittable pseudorandom number generators", 2014).

/// A generator whose sequence depends on its seed only.
package struct SeededRandom: RandomNumberGenerator, Sendable {
  var state: UInt64

  package init(seed: UInt64) { state = seed }

  package mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  /// A number below `limit`, which is not zero. The bias for small limits does not matter here.
  package mutating func below(_ limit: UInt64) -> UInt64 { next() % limit }

  /// True once in `n` times.
  package mutating func oneIn(_ n: UInt64) -> Bool { below(n) == 0 }
}
