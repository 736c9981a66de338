// Arrays of integers in single frames: what paging keeps for each page of an object or slot of a device.
//
// Such a table can have megabytes, when no run of frames is to be had and address space would take tables of
// its own. So it is a radix of frame numbers over single frames, reached by the direct map: up to
// 1024 entries of 4 bytes (512 of 8) are one frame; each level above multiplies that by 1024. All of it is
// there from the start: reaching an entry never takes memory, which is what a page-out needs.

import MemoryPrimitives
import PhysicalMemory

/// A fixed number of integers of 4 or 8 bytes. A value that names its frames: whoever copies it shares them,
/// and one of them frees.
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

  /// `count` entries (at least one), all `initial`. Takes a frame for each 4 KiB of them and one for each
  /// 1024 of those; a store an entry. Throws `noMemory`, and has given back what it took by then;
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
    root = try Self.make(depth, leaves, initial, physical, machine, priority)
  }

  /// Gives all frames back. Nobody may use the array, or a copy of it, afterwards.
  func free() {
    let leaves = (count - 1) >> Self.leafShift + 1
    Self.release(root, depth, leaves, physical, directMap)
  }

  /// Frames that the array takes.
  var frameCount: PageCount {
    let leaves = (count - 1) >> Self.leafShift + 1
    let tables = depth == 0 ? 0 : depth == 1 ? 1 : (leaves - 1) >> Self.fanShift + 2
    return PageCount(leaves + tables)
  }

  // MARK: Entries

  /// Where the entry lies. Its neighbours in the same frame follow it; the frame ends where `index` is a
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

  /// Two loads and up to two more for the way. Whoever uses the entries sees to it that nobody else does.
  @inline(__always) subscript(index: Int) -> Element {
    get { pointer(to: index).pointee }
    nonmutating set { pointer(to: index).pointee = newValue }
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

  private static func make(
    _ depth: Int, _ leaves: Int, _ initial: Element, _ physical: FrameAllocator, _ machine: Machine,
    _ priority: AllocationPriority
  ) throws(PagingError) -> FrameNumber {
    if machine.failsHere(.paging) { throw .noMemory }
    let frame: FrameNumber
    do throws(PhysicalMemoryError) {
      frame = try physical.allocate(Order(0), role: .paging, priority: priority)
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
        table[made / span(depth)] = try make(depth - 1, part, initial, physical, machine, priority)
        made += part
      }
    } catch {
      release(frame, depth, made, physical, machine.directMap)
      throw error
    }
    return frame
  }

  private static func release(
    _ frame: FrameNumber, _ depth: Int, _ leaves: Int, _ physical: FrameAllocator, _ directMap: DirectMap
  ) {
    if depth > 0 {
      var freed = 0
      while freed < leaves {
        let part = min(span(depth), leaves - freed)
        let below = table(frame, directMap)[freed / span(depth)]
        release(below, depth - 1, part, physical, directMap)
        freed += part
      }
    }
    physical.free(FrameRun(first: frame, count: .one))
  }
}
