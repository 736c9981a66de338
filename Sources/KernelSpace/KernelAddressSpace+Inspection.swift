// Queries: the description of an address, all ranges, counters.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization
import Vmem

/// The part of the address space that an address lies in.
@frozen @usableFromInline package enum AddressRegion: UInt8, Sendable {
  case directMap, kernel, windows, device, elsewhere

  /// The region as the console prints it.
  package var description: StaticString {
    switch self {
    case .directMap: "direct map"
    case .kernel: "kernel_va"
    case .windows: "the page windows"
    case .device: "device window"
    case .elsewhere: "no region of kernel space"
    }
  }
}

/// The description of an address.
package struct AddressDescription {
  /// The region that it lies in.
  package var region: AddressRegion
  /// The lowest arena that has the address in a span, and the segment there.
  package var arena: ShortName?
  /// The segment of that arena.
  package var segment: Segment?
  /// The range that it lies in, if it is mapped there.
  package var range: TaggedRange?
  /// The purpose of that range.
  package var kind: RangeKind?
  /// The mapping of the address itself.
  package var translation: PageTranslation?
}

extension KernelAddressSpace {
  /// Describes an address. Costs a pass over the arenas' spans and over the range.
  package func whatIs(_ address: VirtualAddress) -> AddressDescription {
    let region = region(of: address)
    var description = AddressDescription(region: region, translation: tables.translate(address))
    func search(_ arena: Arena) {
      guard let segment = arena.find(ArenaAddress(address.rawValue)) else { return }
      (description.arena, description.segment) = (arena.name, segment)
    }
    switch region {
    case .kernel:
      // A span that another arena imported from `kernel_va` is described by that arena.
      search(arena(WiredArena.kernel))
      search(arena(WiredArena.heap))
      search(arena(WiredArena.metadata))
      search(arena(WiredArena.interrupt))
    case .device: search(deviceArena)
    case .directMap, .windows, .elsewhere:
      return description
    }
    description.range = tables.range(containing: address)
    if description.range == nil, description.arena == kernelArena.name {
      description.range = description.segment.flatMap { pageableRange($0) }
    }
    description.kind = description.range.flatMap { RangeKind(rawValue: $0.tag.rawValue) }
    return description
  }

  func region(of address: VirtualAddress) -> AddressRegion {
    let layout = state.pointee.layout
    func isIn(_ base: VirtualAddress, _ size: UInt64) -> Bool {
      address >= base && address.rawValue - base.rawValue < size
    }
    if isIn(layout.kernelBase, layout.kernelSize.rawValue) { return .kernel }
    if tables.windows.place(of: address) != nil { return .windows }
    if isIn(layout.deviceBase, layout.deviceSize.rawValue) { return .device }
    if isIn(VirtualAddress(machine.directMap.base), 1 << 46) { return .directMap }
    return .elsewhere
  }

  /// Pages mapped for a kind of range.
  package func pages(_ kind: RangeKind) -> PageCount {
    PageCount(state.pointee.counts[Int(kind.rawValue)].load(ordering: .relaxed))
  }
  /// Ranges of a kind.
  package func rangeCount(_ kind: RangeKind) -> UInt64 {
    state.pointee.counts[16 + Int(kind.rawValue)].load(ordering: .relaxed)
  }
  /// Requests that failed.
  package var failureCount: UInt64 { state.pointee.failures.load(ordering: .relaxed) }

  /// Visits each range of the kernel's and the device window's arenas, a pageable one with all of its addresses, mapped
  /// or not. `visit` runs with no lock held. A range that changes during the walk may or may not be visited.
  package func forEachRange<E>(_ visit: (TaggedRange, RangeKind) throws(E) -> Void) throws(E) {
    try forEachRange(in: state.pointee.heap, visit)
    try forEachRange(in: state.pointee.metadata, visit)
    try forEachRange(in: state.pointee.interrupt, visit)
    try forEachRange(in: state.pointee.kernel, visit)
    try forEachRange(in: state.pointee.device, visit)
  }

  private func forEachRange<E>(
    in arena: Arena, _ visit: (TaggedRange, RangeKind) throws(E) -> Void
  ) throws(E) {
    try arena.walk { segment throws(E) in
      guard segment.kind == .busy else { return }
      let start = VirtualAddress(segment.first.rawValue)
      let pageable = arena == kernelArena ? pageableRange(segment) : nil
      // A stack begins behind its guard page.
      guard let range = pageable ?? tables.range(at: start) ?? tables.range(at: start + PageCount.one),
        range.address.rawValue + (range.count.bytes.rawValue - 1) <= segment.last.rawValue,
        // An imported span belongs to the arena that imported it.
        let kind = RangeKind(rawValue: range.tag.rawValue), self.arena(kind) == arena
      else { return }
      try visit(range, kind)
    }
  }
}
