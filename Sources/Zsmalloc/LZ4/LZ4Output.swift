/// Where a block is decoded to.
struct LZ4Output {
  let target: LZ4Target
  let capacity: Int

  init(_ target: LZ4Target, capacity: Int) {
    self.target = target
    self.capacity = capacity
  }

  /// Whether a match at `place` may begin `distance` bytes earlier.
  @inline(always) func reaches(back distance: Int, from place: Int) -> Bool {
    UInt(truncatingIfNeeded: distance &- 1) < UInt(truncatingIfNeeded: place)
  }
}
