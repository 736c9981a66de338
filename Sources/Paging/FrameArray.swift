// Arrays of integers in single frames: the words that paging keeps for each page of an object or slot of a device.
//
// Such a table can have megabytes, while memory may have no free run, and address space would need page tables of
// its own. So it is a radix of frame numbers over single frames, reached by the direct map. Up to
// 1024 entries of 4 bytes (512 of 8) are one frame; each level above multiplies that by 1024. All of it is
// allocated at the start: reaching an entry never needs memory, so page-out needs none.

import MemoryPrimitives
import PhysicalMemory

/// A fixed number of integers of 4 or 8 bytes. The value names its frames: copies share them, and one owner frees them.
struct FrameArray<Element: FixedWidthInteger & UnsignedInteger> {
  let count: Int
  private let physical: FrameAllocator
  private let directMap: DirectMap
  private let root: FrameNumber
  /// Levels of frame numbers above the entries: 0, 1 or 2.
  private let depth: Int

  /// Binary logarithm of the entries in a frame.
  @inline(__always) static var leafShift: Int { 12 &- MemoryLayout<Element>.size.trailingZeroBitCount }
  /// Binary logarithm of the frame numbers in a frame.
  @inline(__always) private static var fanShift: Int { 10 }
  @inline(__always) private static var fan: Int { 1 << fanShift }

  /// Creates `count` entries (at least one), all `initial`. Allocates a frame for each 4 KiB of them and one for each
  /// 1024 of those; a store an entry. Throws `noMemory`, with nothing allocated;
  /// `badConstraint` for more than a radix of three levels holds (2^30 entries of 4 bytes).
  init(
    count: Int, initial: Element, physical: FrameAllocator, machine: Machine,
    priority: AllocationPriority = .normal
  ) throws(PagingError) {
    precondition(count > 0, "an array without entries")
    let leaves = (count - 1) >> Self.leafShift + 1
    guard leaves <= Self.fan << Self.fanShift else { throw .badConstraint }
    self.count = count
    self.physical = physical
    directMap = machine.directMap
    depth = leaves == 1 ? 0 : leaves <= Self.fan ? 1 : 2
    root = try Self.make(
      depth: depth, leaves: leaves, initial,
      from: Frames(physical: physical, machine: machine, priority: priority))
  }

  /// Frees all frames. Neither the array nor a copy of it may be used afterwards.
  func free() {
    let leaves = (count - 1) >> Self.leafShift + 1
    Self.release(root, depth: depth, leaves: leaves, to: physical, directMap)
  }

  /// Frames of the array.
  var frameCount: PageCount {
    let leaves = (count - 1) >> Self.leafShift + 1
    let tables = depth == 0 ? 0 : depth == 1 ? 1 : (leaves - 1) >> Self.fanShift + 2
    return PageCount(leaves + tables)
  }

  // MARK: Entries

  /// The address of an entry. Its neighbours in the same frame follow it; the frame ends where `index` is a
  /// multiple of 1024 (512 for entries of 8 bytes).
  @inline(__always) func pointer(to index: Int) -> UnsafeMutablePointer<Element> {
    assert(index >= 0 && index < count, "an index outside of the array")
    var frame = root
    if depth != 0 {
      let leaf = index &>> Self.leafShift
      if depth == 2 { frame = Self.table(frame, directMap)[leaf &>> Self.fanShift] }
      frame = Self.table(frame, directMap)[leaf & (Self.fan &- 1)]
    }
    return directMap.pointer(to: frame).assumingMemoryBound(to: Element.self)
      + (index & (1 &<< Self.leafShift &- 1))
  }

  /// An entry: two loads, and up to two more for the tables. The caller guards the entries against concurrent use.
  @inline(__always) subscript(index: Int) -> Element {
    unsafeAddress { UnsafePointer(pointer(to: index)) }
    nonmutating unsafeMutableAddress { pointer(to: index) }
  }

  // MARK: Frames

  @inline(__always)
  private static func table(
    _ frame: FrameNumber, _ directMap: DirectMap
  ) -> UnsafeMutablePointer<FrameNumber> {
    directMap.pointer(to: frame).assumingMemoryBound(to: FrameNumber.self)
  }

  /// Leaves below one entry of a table of `depth`.
  private static func span(_ depth: Int) -> Int { depth == 2 ? fan : 1 }

  /// The source of an array's frames.
  private struct Frames {
    let physical: FrameAllocator
    let machine: Machine
    let priority: AllocationPriority
  }

  private static func make(
    depth: Int, leaves: Int, _ initial: Element, from source: Frames
  ) throws(PagingError) -> FrameNumber {
    let (physical, machine) = (source.physical, source.machine)
    if machine.failsHere(.paging) { throw .noMemory }
    let frame: FrameNumber
    do throws(PhysicalMemoryError) {
      frame = try physical.allocateUnlogged(
        BlockOrder(0), role: .paging, priority: source.priority,
        for: FrameOwner("Paging, slots of pages"))
    } catch {
      throw .noMemory
    }
    if depth == 0 {
      machine.directMap.pointer(to: frame).bindMemory(to: Element.self, capacity: 1 << leafShift)
        .initialize(repeating: initial, count: 1 << leafShift)
      return frame
    }
    let table = machine.directMap.pointer(to: frame).bindMemory(to: FrameNumber.self, capacity: fan)
    var made = 0
    do throws(PagingError) {
      while made < leaves {
        let part = min(span(depth), leaves - made)
        table[made / span(depth)] = try make(depth: depth - 1, leaves: part, initial, from: source)
        made += part
      }
    } catch {
      release(frame, depth: depth, leaves: made, to: physical, machine.directMap)
      throw error
    }
    return frame
  }

  private static func release(
    _ frame: FrameNumber, depth: Int, leaves: Int, to physical: FrameAllocator, _ directMap: DirectMap
  ) {
    if depth > 0 {
      var freed = 0
      while freed < leaves {
        let part = min(span(depth), leaves - freed)
        let below = table(frame, directMap)[freed / span(depth)]
        release(below, depth: depth - 1, leaves: part, to: physical, directMap)
        freed += part
      }
    }
    physical.free(FrameRun(first: frame, count: .one))
  }
}
