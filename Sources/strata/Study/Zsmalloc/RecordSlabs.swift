// Metadata records of one size in frames of their own, as a slab cache packs them.
//
// A frame is freed with the last record in it. A new record goes to the frame that has last had space, so after
// random frees most frames stay: that is a cost of records outside of the objects.

import MemoryPrimitives

struct RecordSlabs {
  private struct Slab {
    var frame: FrameNumber
    var used = 0
  }
  private let supply: FrameSupply
  /// Records of a frame.
  let capacity: Int
  private var slabs: [Slab] = []
  /// Slabs with space, and slabs without a frame.
  private var partial: [Int] = []
  private var unused: [Int] = []
  private(set) var frames: UInt64 = 0

  init(bytes: Int, _ supply: FrameSupply) {
    capacity = Int(Page.size) / bytes
    self.supply = supply
  }

  /// Allocates a record, and answers its slab; nil when there is no frame.
  mutating func allocate() -> Int? {
    if partial.isEmpty {
      guard let frame = supply.allocate() else { return nil }
      frames += 1
      if let slab = unused.popLast() {
        slabs[slab] = Slab(frame: frame)
        partial.append(slab)
      } else {
        slabs.append(Slab(frame: frame))
        partial.append(slabs.count - 1)
      }
    }
    let slab = partial[partial.count - 1]
    slabs[slab].used += 1
    if slabs[slab].used == capacity { partial.removeLast() }
    return slab
  }

  mutating func free(_ slab: Int) {
    if slabs[slab].used == capacity { partial.append(slab) }
    slabs[slab].used -= 1
    guard slabs[slab].used == 0 else { return }
    partial.removeAll { $0 == slab }
    unused.append(slab)
    supply.free(slabs[slab].frame)
    frames -= 1
  }
}
