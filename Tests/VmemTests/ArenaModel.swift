import MemoryPrimitives
import Vmem

/// The expected contents of an arena: spans and busy segments as sorted arrays, and brute force in 128 bits.
struct ArenaModel {
  typealias Range = ClosedRange<UInt64>
  var spans: [Range] = []
  var busy: [Range] = []

  var free: [Range] {
    var all: [Range] = []
    for span in spans {
      var start = UInt128(span.lowerBound)
      for segment in busy where span.contains(segment.lowerBound) {
        if UInt128(segment.lowerBound) > start { all.append(UInt64(start)...(segment.lowerBound - 1)) }
        start = UInt128(segment.upperBound) + 1
      }
      if start <= UInt128(span.upperBound) { all.append(UInt64(start)...span.upperBound) }
    }
    return all
  }

  static func length(_ range: Range) -> UInt128 { UInt128(range.upperBound - range.lowerBound) + 1 }
  var allocated: UInt128 { busy.reduce(0) { $0 + Self.length($1) } }
  var total: UInt128 { spans.reduce(0) { $0 + Self.length($1) } }
  var largest: UInt128 { free.map(Self.length).max() ?? 0 }

  /// Whether a place satisfies a request, straight from the words of vmem(9).
  static func satisfies(_ place: UInt128, _ size: UInt128, _ wish: ArenaConstraints) -> Bool {
    let last = place + size - 1
    guard last <= UInt128(UInt64.max) else { return false }
    guard place % UInt128(wish.alignment.rawValue) == UInt128(wish.phase.rawValue) else { return false }
    guard place >= UInt128(wish.minimum.rawValue), last <= UInt128(wish.maximum.rawValue) else {
      return false
    }
    if let nocross = wish.nocross {
      guard place / UInt128(nocross.rawValue) == last / UInt128(nocross.rawValue) else { return false }
    }
    return true
  }

  /// Whether some place in `range` satisfies the request: every aligned place is tried, or, in ranges too
  /// long for that, those near the start and near the multiples of `nocross`.
  static func fits(_ range: Range, _ size: UInt128, _ wish: ArenaConstraints) -> Bool {
    let low = max(UInt128(range.lowerBound), UInt128(wish.minimum.rawValue))
    let high = min(UInt128(range.upperBound), UInt128(wish.maximum.rawValue))
    guard low <= high, high - low + 1 >= size else { return false }
    let step = UInt128(wish.alignment.rawValue)
    var place = low / step * step + UInt128(wish.phase.rawValue)
    if place < low { place += step }
    var tries = 0
    while place + size - 1 <= high, tries < 4096 {
      if satisfies(place, size, wish) { return true }
      place += step
      tries += 1
    }
    guard let nocross = wish.nocross, place + size - 1 <= high else { return false }
    var window = low / UInt128(nocross.rawValue) * UInt128(nocross.rawValue)
    for _ in 0..<4 {
      let place = window + UInt128(wish.phase.rawValue)
      if place >= low, place + size - 1 <= high, satisfies(place, size, wish) { return true }
      window += UInt128(nocross.rawValue)
    }
    return false
  }

  func canSatisfy(_ size: UInt64, _ wish: ArenaConstraints, quantum: UInt64) -> Bool {
    let rounded = (UInt128(size) + UInt128(quantum) - 1) / UInt128(quantum) * UInt128(quantum)
    var wish = wish
    if wish.alignment.rawValue < quantum { wish.alignment = Alignment(quantum)! }
    return free.contains { Self.fits($0, rounded, wish) }
  }

  mutating func insert(_ range: Range) {
    let index = busy.firstIndex { $0.lowerBound > range.lowerBound } ?? busy.count
    busy.insert(range, at: index)
  }
}
