// contigmalloc(9) and its relatives: contiguous memory with addresses, and with a type.
//
// The frames come first, then the addresses; when there are none of those, the frames go back. The type counts
// an allocation when the mapping stands, and a failure otherwise: a failed call is never an allocation.

import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization

extension ContiguousAllocator {
  /// Contiguous memory behind kernel addresses, mapped writable with `attribute`; the direct map then shows its
  /// frames the same way. Not counted under a type. `noAddressSpace`: the frames went back.
  public func kmemAllocContig(
    _ request: ContiguousRequest, attribute: CacheAttribute = .writeBack,
    contents: InitialContents = .unknown, at site: CallSite = .here,
    observe: (ContiguousEvent) -> Void = { _ in }
  ) throws(ContiguousFailure) -> ContiguousRange {
    try counted(request) { (spent) throws(ContiguousFailure) in
      let run = try empty(request, &spent, observe)
      return try map(run, request, &spent, attribute, contents, site, observe)
    }
  }

  /// Gives back what `kmemAllocContig` gave. Faults as `KernelAddressSpace.freeContiguous`.
  public func kmemFreeContig(_ range: ContiguousRange, at site: CallSite = .here) {
    state.pointee.space.freeContiguous(range.address, range.frames.count, at: site)
  }

  private func map(
    _ run: FrameRun, _ request: ContiguousRequest, _ spent: inout Spending, _ attribute: CacheAttribute,
    _ contents: InitialContents, _ site: CallSite, _ observe: (ContiguousEvent) -> Void
  ) throws(ContiguousFailure) -> ContiguousRange {
    do throws(KernelSpaceError) {
      return ContiguousRange(
        address: try mapOnce(run, request, &spent, attribute, contents, site, observe), frames: run)
    } catch {
      physical.free(run)
      throw ContiguousFailure(.noAddressSpace)
    }
  }

  /// Maps the run. If the run has left no frames for tables, the page daemon frees some first, where it may.
  private func mapOnce(
    _ run: FrameRun, _ request: ContiguousRequest, _ spent: inout Spending, _ attribute: CacheAttribute,
    _ contents: InitialContents, _ site: CallSite, _ observe: (ContiguousEvent) -> Void
  ) throws(KernelSpaceError) -> VirtualAddress {
    let tables = PageCount(8 + run.count.rawValue >> 9)
    let needed = physical.reserve(for: request.priority) + tables
    if request.waitPolicy == .allowed && request.passes > .relocate && physical.freeCount < needed {
      _ = fetch(until: needed, atMost: needed, for: request, &spent, observe)
    }
    return try state.pointee.space.mapContiguous(
      run, attribute: attribute, contents: contents, priority: request.priority, at: site)
  }

  /// `size` bytes of contiguous memory, rounded up to pages, counted under `type`. Goes about it as
  /// `vm.contig.strategy` and `vm.contig.passes` say.
  public func contigmalloc(
    _ size: ByteCount, type: MemoryType, where constraints: RunConstraints = RunConstraints(),
    attribute: CacheAttribute = .writeBack, contents: InitialContents = .unknown,
    waitPolicy: WaitPolicy = .allowed, at site: CallSite = .here,
    observe: (ContiguousEvent) -> Void = { _ in }
  ) throws(ContiguousFailure) -> ContiguousRange {
    var request = ContiguousRequest(size.pagesRoundedUp, where: constraints)
    request.waitPolicy = waitPolicy
    request.passes = passes
    request.requester = type.name
    do throws(ContiguousFailure) {
      let range = try counted(request) { (spent) throws(ContiguousFailure) in
        let run =
          strategy == .new
          ? try empty(request, &spent, observe) : try launderAndHope(request, &spent, observe)
        return try map(run, request, &spent, attribute, contents, site, observe)
      }
      state.pointee.kmem.countContiguous(type, range.frames.count)
      return range
    } catch {
      state.pointee.kmem.countContiguousFailure(type)
      throw error
    }
  }

  /// Gives back what `contigmalloc` gave, by the same size and type. A wrong size, a type that has not so much, or
  /// an address that is not that: a fault report, and nothing has changed.
  public func contigfree(
    _ address: VirtualAddress, size: ByteCount, type: MemoryType, at site: CallSite = .here
  ) {
    let count = size.pagesRoundedUp
    let held = state.pointee.kmem.contiguous(type)
    guard held.requests > 0, held.pages >= count else {
      // Reports, and counts nothing.
      state.pointee.kmem.uncountContiguous(type, count, at: site)
      return
    }
    guard state.pointee.space.freeContiguous(address, count, at: site) else { return }
    state.pointee.kmem.uncountContiguous(type, count, at: site)
  }

  // MARK: The old strategy

  /// What contigmalloc did before 2004: three tries; between them it launders as many pages of the inactive
  /// queue, then of the active one, as there are, wherever they lie. The last try launders nothing in vain.
  private func launderAndHope(
    _ request: ContiguousRequest, _ spent: inout Spending, _ observe: (ContiguousEvent) -> Void
  ) throws(ContiguousFailure) -> FrameRun {
    if machine.failsHere(.contiguous) { throw .injected }
    // No page is written for what memory has no place for.
    guard physical.hasPlace(forRun: request.count, where: request.constraints) else {
      throw ContiguousFailure(.never)
    }
    for turn in 0..<3 {
      do throws(PhysicalMemoryError) {
        let run = try physical.allocate(
          run: request.count, where: request.constraints, role: .contiguous, priority: request.priority)
        observe(.foundFree(run))
        return run
      } catch {
        if error == .badConstraint { throw ContiguousFailure(.never) }
      }
      if turn == 2 || request.waitPolicy == .forbidden { break }
      launderAll(turn == 0 ? .laundry : .active, &spent, observe)
      if turn == 0 { launderAll(.inactive, &spent, observe) }
    }
    var failure = ContiguousFailure(.notNow)
    failure.longest = physical.longestEmptiableRun(
      low: request.constraints.low, high: request.constraints.high)
    throw failure
  }

  private func launderAll(
    _ queue: PageQueue, _ spent: inout Spending, _ observe: (ContiguousEvent) -> Void
  ) {
    let outcome = paging.launder(queue, upTo: paging.count(queue), referenced: .launder)
    spent.written = spent.written + outcome.written
    state.pointee.written.add(outcome.written.rawValue, ordering: .relaxed)
    observe(.laundered(queue, outcome))
  }

  // MARK: Tunables and figures

  public var strategy: ContiguousStrategy {
    ContiguousStrategy(rawValue: UInt8(state.pointee.strategy.load(ordering: .relaxed))) ?? .new
  }
  public var passes: ContiguousPass {
    ContiguousPass(rawValue: UInt8(state.pointee.passes.load(ordering: .relaxed))) ?? .launderActive
  }
  public func setStrategy(_ strategy: ContiguousStrategy) {
    state.pointee.strategy.store(UInt64(strategy.rawValue), ordering: .relaxed)
  }
  public func setPasses(_ passes: ContiguousPass) {
    state.pointee.passes.store(UInt64(passes.rawValue), ordering: .relaxed)
  }

  /// Pages moved and written by this allocator since the start.
  public var movedCount: PageCount { PageCount(state.pointee.moved.load(ordering: .relaxed)) }
  public var writtenCount: PageCount { PageCount(state.pointee.written.load(ordering: .relaxed)) }

  init(_ context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }

  /// Adds the rows of this layer.
  public func register(in statistics: Statistics) {
    let context = UnsafeMutableRawPointer(state)
    statistics.add(
      Statistic(
        "vm.contig.strategy", .choice, .tunable, "only the run, or launder and hope", choices: "old|new",
        context: context, read: { UInt64(ContiguousAllocator($0).strategy.rawValue) },
        write: {
          guard let strategy = ContiguousStrategy(rawValue: UInt8(clamping: $1)) else { return .out_of_range }
          ContiguousAllocator($0).setStrategy(strategy)
          return .accepted
        }))
    statistics.add(
      Statistic(
        "vm.contig.passes", .passes, .tunable, "how far contigmalloc may go, 1 to 4", context: context,
        read: { UInt64(ContiguousAllocator($0).passes.rawValue) },
        write: {
          guard let passes = ContiguousPass(rawValue: UInt8(clamping: $1)) else { return .out_of_range }
          ContiguousAllocator($0).setPasses(passes)
          return .accepted
        }))
    func counter(
      _ name: StaticString, _ unit: StatisticUnit, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, unit, .counter, about, context: context, read: read))
    }
    counter("vm.contig.requests", .requests, "for contiguous memory") {
      ContiguousAllocator($0).state.pointee.requests.load(ordering: .relaxed)
    }
    counter("vm.contig.granted", .requests, "since boot") {
      ContiguousAllocator($0).state.pointee.granted.load(ordering: .relaxed)
    }
    counter("vm.contig.refused", .requests, "since boot") {
      ContiguousAllocator($0).state.pointee.refused.load(ordering: .relaxed)
    }
    counter("vm.contig.repeated", .requests, "refused from memory, in constant time") {
      ContiguousAllocator($0).state.pointee.repeated.load(ordering: .relaxed)
    }
    counter("vm.contig.pages_moved", .pages, "out of the way of runs") {
      ContiguousAllocator($0).movedCount.rawValue
    }
    counter("vm.contig.pages_written", .pages, "to swap or devices, for runs") {
      ContiguousAllocator($0).writtenCount.rawValue
    }
    counter("vm.contig.runs_abandoned", .events, "begun to be emptied, and not to be had") {
      ContiguousAllocator($0).state.pointee.runsAbandoned.load(ordering: .relaxed)
    }
  }
}
