// Looking at kernel space: what an address is, all ranges, figures, the check.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization
import Vmem

/// The part of the address space that an address lies in.
@frozen public enum AddressRegion: UInt8, Sendable {
  case directMap, kernel, device, elsewhere

  public var description: StaticString {
    switch self {
    case .directMap: "direct map"
    case .kernel: "kernel_va"
    case .device: "device window"
    case .elsewhere: "no region of kernel space"
    }
  }
}

/// Everything that this layer knows of an address.
public struct AddressDescription {
  public var region: AddressRegion
  /// The lowest arena that has the address in a span, and the segment there.
  public var arena: Name?
  public var segment: Segment?
  /// The range that it lies in, if it is mapped there.
  public var range: TaggedRange?
  public var kind: RangeKind?
  public var translation: Translation?
}

extension KernelAddressSpace {
  /// Everything known of an address. Costs a pass over the arenas' spans and over the range.
  public func whatIs(_ address: VirtualAddress) -> AddressDescription {
    let region = region(of: address)
    var description = AddressDescription(region: region, translation: tables.translate(address))
    func look(_ arena: Arena) {
      guard let segment = arena.find(ArenaAddress(address.rawValue)) else { return }
      (description.arena, description.segment) = (arena.name, segment)
    }
    switch region {
    case .kernel:
      // What `kernel_va` gave to an arena that imports is described by that one.
      look(arena(WiredArena.kernel))
      look(arena(WiredArena.heap))
      look(arena(WiredArena.metadata))
      look(arena(WiredArena.interrupt))
    case .device: look(deviceArena)
    case .directMap, .elsewhere:
      return description
    }
    description.range = tables.range(containing: address)
    if description.range == nil, description.arena == kernelArena.name {
      description.range = description.segment.flatMap { pageableRange($0) }
    }
    description.kind = description.range.flatMap { RangeKind(rawValue: $0.tag.rawValue) }
    return description
  }

  private func region(of address: VirtualAddress) -> AddressRegion {
    let layout = state.pointee.layout
    func isIn(_ base: VirtualAddress, _ size: UInt64) -> Bool {
      address >= base && address.rawValue - base.rawValue < size
    }
    if isIn(layout.kernelBase, layout.kernelSize.rawValue) { return .kernel }
    if isIn(layout.deviceBase, layout.deviceSize.rawValue) { return .device }
    if isIn(VirtualAddress(machine.directMap.base), 1 << 46) { return .directMap }
    return .elsewhere
  }

  /// Pages mapped for a kind of range.
  public func pages(_ kind: RangeKind) -> PageCount {
    PageCount(state.pointee.counts[Int(kind.rawValue)].load(ordering: .relaxed))
  }
  /// Ranges of a kind.
  public func rangeCount(_ kind: RangeKind) -> UInt64 {
    state.pointee.counts[16 + Int(kind.rawValue)].load(ordering: .relaxed)
  }
  /// Requests that were not granted.
  public var failureCount: UInt64 { state.pointee.failures.load(ordering: .relaxed) }

  /// Visits each range of the kernel's and the device window's arenas; of a pageable one all addresses,
  /// whatever is mapped there. `visit` runs with no lock held; what changes meanwhile may or may not be seen.
  public func forEachRange<E>(_ visit: (TaggedRange, RangeKind) throws(E) -> Void) throws(E) {
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
        // What another arena imported is that one's.
        let kind = RangeKind(rawValue: range.tag.rawValue), self.arena(kind) == arena
      else { return }
      try visit(range, kind)
    }
  }

  /// Adds the rows of this layer to `statistics`.
  public func register(in statistics: Statistics) {
    func add(
      _ name: StaticString, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, .pages, .gauge, about, context: state, read: read))
    }
    add("vm.kernel.heap", "pages of wired heap memory") { KernelAddressSpace(from: $0).pages(.heap).rawValue }
    add("vm.kernel.metadata", "pages of wired metadata") {
      KernelAddressSpace(from: $0).pages(.metadata).rawValue
    }
    add("vm.kernel.interrupt", "pages wired for interrupt handlers") {
      KernelAddressSpace(from: $0).pages(.interrupt).rawValue
    }
    add("vm.kernel.wired", "pages wired straight from kernel_va") {
      KernelAddressSpace(from: $0).pages(.kernel).rawValue
    }
    add("vm.kernel.stacks", "pages of stacks, guard pages not counted") {
      KernelAddressSpace(from: $0).pages(.stack).rawValue
    }
    add("vm.kernel.device", "pages of device registers mapped") {
      KernelAddressSpace(from: $0).pages(.device).rawValue
    }
    add("vm.kernel.contiguous", "pages of contiguous memory mapped") {
      KernelAddressSpace(from: $0).pages(.contiguous).rawValue
    }
    add("vm.kernel.caller_frames", "pages of callers' frames mapped") {
      KernelAddressSpace(from: $0).pages(.callerFrames).rawValue
    }
    add("vm.kernel.pageable", "pages of addresses for pageable memory") {
      KernelAddressSpace(from: $0).pages(.pageable).rawValue
    }
    statistics.add(
      Statistic(
        "vm.kernel.failures", .requests, .counter, "requests for kernel space that were not granted",
        context: state, read: { KernelAddressSpace(from: $0).failureCount }))
  }

  private init(from context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }

  // MARK: The check

  /// Which invariant is broken, or nil. Exact when nothing runs.
  public func checkInvariants() -> StaticString? {
    if let broken = tables.checkInvariants() ?? tags.checkInvariants() { return broken }

    var found: InlineArray<16, UInt64> = .init(repeating: 0)
    var ranges: InlineArray<16, UInt64> = .init(repeating: 0)
    // Pages that the ranges have mapped: of a pageable one as many as happen to be.
    var all: UInt64 = 0
    var isPrepared = true
    forEachRange { range, kind in
      found[Int(kind.rawValue)] += range.count.rawValue
      ranges[Int(kind.rawValue)] += 1
      if kind == .pageable {
        all += tables.mappedCount(range.address, count: range.count).rawValue
        if tables.preparedCount(range.address, count: range.count) != range.count { isPrepared = false }
      } else {
        all += range.count.rawValue
      }
    }
    if !isPrepared { return "kernel space: invariant 1, a page of a pageable range is not prepared" }
    func pages(_ kind: RangeKind) -> UInt64 { found[Int(kind.rawValue)] }
    var broken: StaticString?
    RangeKind.forEach { kind in
      if pages(kind) != self.pages(kind).rawValue {
        broken = "kernel space: invariant 2, the pages of a kind are not those of its segments"
      }
      if ranges[Int(kind.rawValue)] != rangeCount(kind) {
        broken = "kernel space: invariant 1, a segment has no range, or a range no segment"
      }
    }
    if let broken { return broken }
    var mapped: UInt64 = 0
    tables.forEachRun { run in
      let region = region(of: run.address)
      if region == .kernel || region == .device { mapped += run.count.rawValue }
    }
    if mapped != all { return "kernel space: invariant 2, pages are mapped that belong to no range" }

    // What is allocated of an arena is what is mapped in it, and what others imported.
    func allocated(_ arena: Arena) -> UInt64 { arena.size(.allocated).rawValue >> Page.shift }
    func total(_ arena: Arena) -> UInt64 { arena.size(.total).rawValue >> Page.shift }
    var kernel = total(state.pointee.heap) + total(state.pointee.metadata)
    kernel += total(state.pointee.interrupt) + rangeCount(.stack)
    kernel += pages(.kernel) + pages(.stack) + pages(.contiguous) + pages(.callerFrames) + pages(.pageable)
    if kernel != allocated(state.pointee.kernel) || pages(.device) != allocated(state.pointee.device)
      || pages(.heap) != allocated(state.pointee.heap)
      || pages(.metadata) != allocated(state.pointee.metadata)
      || pages(.interrupt) != allocated(state.pointee.interrupt)
    {
      return "kernel space: invariant 1, addresses are allocated that nothing is mapped at"
    }
    return nil
  }
}
