// Reaching an object that straddles two pages as one range of bytes, or as two.
//
// Linux' list argued in 2012 which way is right: an open-coded window of two page-table entries, or vmap, which may
// fail to read what is stored. All of them are here, to be compared; `zs.access` selects.
//
//   parts    the two parts in the direct map. No mapping, no copy, no state; the consumer takes two parts. The
//            default: the LZ4 decoder reads them in place, and a reader may be an interrupt handler or a thread that
//            is preempted.
//   window   the processor's page window: two entries are stored, and two translations dropped. Never fails. For a
//            consumer that needs one part.
//   map      an address for each processor and depth, mapped and unmapped by ordinary calls: the tables' lock twice,
//            and every processor is asked to invalidate. The tables are prepared, so it never fails. An
//            interrupt handler gets the window instead.
//   vmap     new addresses each time. Needs boundary tags and tables, so it fails when memory is gone. An
//            interrupt handler gets the window instead.
//   copy     a copy in a buffer of the processor.
//
// The places of `map` and the buffers of `copy` are allocated when they are first selected.

import CPlatform
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// A way to reach an object that straddles two pages.
public enum StraddlingAccess: UInt8, CaseIterable, Sendable {
  case parts, window, map, vmap, copy

  /// The names of all, in the order of their numbers, as `zs.access` takes them.
  package static var names: StaticString { "parts|window|map|vmap|copy" }
}

/// The place of an object that straddles two frames.
private struct StraddlingBytes {
  let first: PhysicalAddress
  let second: FrameNumber
  let count: Int

  init(_ parts: SlotParts, _ directMap: DirectMap) {
    func physical(_ part: UnsafeMutableRawBufferPointer) -> PhysicalAddress {
      directMap.physicalAddress(of: VirtualAddress(part.baseAddress.unsafelyUnwrapped))
    }
    first = physical(parts.first)
    second = physical(parts.second).frame
    count = parts.first.count + parts.second.count
  }
}

/// The needs of all ways but parts; set up once, and kept.
struct StraddlingPlaces: ~Copyable {
  let space: KernelAddressSpace
  let selected = Atomic<UInt8>(StraddlingAccess.parts.rawValue)
  /// The first address of `map`'s places, three pages apart, by processor and depth; 0 before it was selected.
  let mapBase = Atomic<UInt64>(0)
  /// The first of the frames of buffers, named by the words of one frame, by processor and depth; 0 before it was
  /// selected.
  let buffers = Atomic<UInt64>(0)
  /// Reads that found no memory for new addresses.
  let refusals = Atomic<UInt64>(0)

  init(_ space: KernelAddressSpace) { self.space = space }

  static var depths: Int { 2 }
  /// Two places and an unmapped page.
  static var placePages: UInt64 { 3 }
}

extension ZspageAllocator {
  private var places: UnsafeMutablePointer<StraddlingPlaces>? { state.pointee.places }

  /// The way to reach an object that straddles two pages.
  public var access: StraddlingAccess {
    guard let places else { return .parts }
    return StraddlingAccess(rawValue: places.pointee.selected.load(ordering: .relaxed)) ?? .parts
  }

  /// Reads that were refused, as only vmap's are.
  package var refusedReads: UInt64 { places?.pointee.refusals.load(ordering: .relaxed) ?? 0 }

  /// Selects the way. Allocates what it needs when it is selected for the first time; throws `noMemory`, and selects
  /// nothing, when there is not enough. Not for two threads at once.
  public func select(_ access: StraddlingAccess) throws(ZsmallocError) {
    guard let places else { return }
    switch access {
    case .parts, .window, .vmap: break
    case .map: try prepareMap(places)
    case .copy: try prepareBuffers(places)
    }
    places.pointee.selected.store(access.rawValue, ordering: .releasing)
  }

  /// Calls `body` with an object in one part, or in two where `access` is parts and the object straddles. Throws
  /// `noMemory` where `access` is vmap and no memory is left. Answers nil for a handle that names no object, which is
  /// reported.
  @inline(__always) package func withSelectedParts<R>(
    of handle: ZspageHandle, _ body: (ObjectParts) -> R
  ) throws(ZsmallocError) -> R? {
    guard let object = pin(handle) else { return nil }
    defer { object.zspage.unpin() }
    let parts = location(of: object.slot, in: object.zspage, length: handle.length)
    let selected = access
    if parts.second.count == 0 || selected == .parts {
      return body(
        ObjectParts(
          first: UnsafeRawBufferPointer(parts.first), second: UnsafeRawBufferPointer(parts.second)))
    }
    return try withBytes(of: parts, by: selected) {
      body(ObjectParts(first: $0, second: UnsafeRawBufferPointer(start: nil, count: 0)))
    }
  }

  /// Calls `body` with two parts of a pinned object as one.
  @inline(never) private func withBytes<R>(
    of parts: SlotParts, by access: StraddlingAccess, _ body: (UnsafeRawBufferPointer) -> R
  ) throws(ZsmallocError) -> R {
    guard let places else { preconditionFailure("a way that was not selected") }
    let bytes = StraddlingBytes(parts, machine.directMap)
    // An interrupt handler can't ask other processors.
    let isHandler = cp_handling() != 0
    switch isHandler && (access == .map || access == .vmap) ? .window : access {
    case .window, .parts:
      return places.pointee.space.tables.windows.withBytes(
        of: bytes.first.frame, bytes.second, at: Int(bytes.first.offsetInPage), count: bytes.count, body)
    case .map: return withPlace(places, bytes, body)
    case .vmap: return try withNewAddress(places, bytes, body)
    case .copy: return withBuffer(places, parts, body)
    }
  }

  /// Whether an object lies in two pages at this moment.
  package func straddles(_ handle: ZspageHandle) -> Bool {
    withParts(of: handle) { $0.second.count > 0 } ?? false
  }

  /// Pins the caller to its processor, and answers the number of its place or buffer: one by processor and depth, so
  /// `body` must not reach another straddling object. Until `cp_unpin`.
  private func pin() -> Int {
    cp_pin()
    let depth = cp_handling()
    assert(cp_pins() <= depth + 1, "a straddling object is reached inside of another's access")
    cp_note_window(depth, cp_here())
    return Int(cp_processor_index()) * StraddlingPlaces.depths + Int(depth)
  }

  // MARK: The ordinary map call

  private func prepareMap(_ places: UnsafeMutablePointer<StraddlingPlaces>) throws(ZsmallocError) {
    if places.pointee.mapBase.load(ordering: .acquiring) != 0 { return }
    let space = places.pointee.space
    let count = StraddlingPlaces.placePages * UInt64(machine.processorCount * StraddlingPlaces.depths)
    do throws(KernelSpaceError) {
      let base = try space.reservePageable(PageCount(count))
      places.pointee.mapBase.store(base.rawValue, ordering: .releasing)
    } catch {
      throw .noMemory
    }
  }

  private func withPlace<R>(
    _ places: UnsafeMutablePointer<StraddlingPlaces>, _ bytes: StraddlingBytes,
    _ body: (UnsafeRawBufferPointer) -> R
  ) -> R {
    let number = pin()
    defer { cp_unpin() }
    let base = VirtualAddress(places.pointee.mapBase.load(ordering: .acquiring))
    let address = base + PageCount(UInt64(number) * StraddlingPlaces.placePages)
    let tables = places.pointee.space.tables
    tables.enter(address, bytes.first.frame, .kernelReadOnly)
    tables.enter(address + .one, bytes.second, .kernelReadOnly)
    let result = tables.withMappedBytes(
      from: address + ByteCount(bytes.first.offsetInPage), count: bytes.count, body)
    _ = tables.remove(address)
    _ = tables.remove(address + .one)
    machine.shootDown(address, PageCount(UInt64(2)))
    return result
  }

  // MARK: New addresses

  private func withNewAddress<R>(
    _ places: UnsafeMutablePointer<StraddlingPlaces>, _ bytes: StraddlingBytes,
    _ body: (UnsafeRawBufferPointer) -> R
  ) throws(ZsmallocError) -> R {
    let space = places.pointee.space
    var frames: InlineArray<2, FrameNumber> = [bytes.first.frame, bytes.second]
    do throws(KernelSpaceError) {
      let address = try withUnsafeMutablePointer(to: &frames) { pointer throws(KernelSpaceError) in
        let list = UnsafeRawPointer(pointer).assumingMemoryBound(to: FrameNumber.self)
        return try space.mapFrames(
          UnsafeBufferPointer(start: list, count: 2), protection: .kernelReadOnly)
      }
      let result = space.tables.withMappedBytes(
        from: address + ByteCount(bytes.first.offsetInPage), count: bytes.count, body)
      space.unmapFrames(address, PageCount(UInt64(2)))
      return result
    } catch {
      places.pointee.refusals.add(1, ordering: .relaxed)
      throw .noMemory
    }
  }

  // MARK: Buffers

  private func prepareBuffers(_ places: UnsafeMutablePointer<StraddlingPlaces>) throws(ZsmallocError) {
    if places.pointee.buffers.load(ordering: .acquiring) != 0 { return }
    let count = machine.processorCount * StraddlingPlaces.depths
    let table = try allocateTableFrame()
    let words = machine.directMap.pointer(to: table).assumingMemoryBound(to: UInt32.self)
    for i in 0..<count {
      do throws(ZsmallocError) {
        words[i] = try allocateTableFrame().rawValue
      } catch {
        for k in 0..<i { physical.free(FrameRun(first: FrameNumber(words[k]), count: .one)) }
        physical.free(FrameRun(first: table, count: .one))
        throw error
      }
    }
    places.pointee.buffers.store(UInt64(UInt(bitPattern: words)), ordering: .releasing)
  }

  private func allocateTableFrame() throws(ZsmallocError) -> FrameNumber {
    do throws(PhysicalMemoryError) {
      return try physical.allocate(
        BlockOrder(0), role: .wired, for: FrameOwner("Zsmalloc, copies of straddling objects"))
    } catch {
      throw .noMemory
    }
  }

  private func withBuffer<R>(
    _ places: UnsafeMutablePointer<StraddlingPlaces>, _ parts: SlotParts,
    _ body: (UnsafeRawBufferPointer) -> R
  ) -> R {
    let number = pin()
    defer { cp_unpin() }
    let words = UnsafePointer<UInt32>(bitPattern: UInt(places.pointee.buffers.load(ordering: .acquiring)))
    let buffer = machine.directMap.pointer(to: FrameNumber(words.unsafelyUnwrapped[number]))
    let count = parts.first.count + parts.second.count
    ObjectParts(
      first: UnsafeRawBufferPointer(parts.first), second: UnsafeRawBufferPointer(parts.second)
    ).copy(into: UnsafeMutableRawBufferPointer(start: buffer, count: count))
    return body(UnsafeRawBufferPointer(start: buffer, count: count))
  }
}
