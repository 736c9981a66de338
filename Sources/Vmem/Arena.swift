// The arena as its callers use it: a handle with alloc, xalloc, free and xfree.
//
// Its other parts: making and destroying (Arena+Create), the search for a segment (Arena+Search), import
// (Arena+Import), sizes and counts (Arena+Statistics), walking and finding (Arena+Inspection), the check
// (Arena+Invariants). Vmem.swift has the theory.

import MemoryPrimitives

/// The state of an arena. Fields are constants, atomics or locked: no code writes to them through `pointee`.
struct ArenaState: ~Copyable {
  let name: ShortName
  let quantum: UInt64
  let contents: ArenaContents
  let tags: Tags
  let machine: Machine
  let source: ArenaSource?
  /// The size of an import is rounded up to this.
  let importUnit: UInt64
  let core: Locked<ArenaCore>
  // Written with the lock held, read without it.
  let allocations = Counter()
  let frees = Counter()
  let failed = Counter()
  /// Those of them that the caller counts and records as its own.
  let failedForCaller = Counter()
  let waits = Counter()
  let imports = Counter()
  let releases = Counter()
  let segments = Counter()
  /// Written under the lock of the supply.
  let nextArena: Cell<Arena?>
}

/// An arena: allocates integers from the spans that it was given. A handle.
public struct Arena {
  let storage: UnsafeMutablePointer<ArenaState>

  init(_ storage: UnsafeMutablePointer<ArenaState>) { self.storage = storage }

  /// The state, in place.
  @inline(always) var state: ArenaState { unsafeAddress { UnsafePointer(storage) } }

  /// The arena that was created next with the same supply. Under the lock of the supply.
  var next: Arena? {
    get { state.nextArena.address.pointee }
    nonmutating set { state.nextArena.address.pointee = newValue }
  }

  /// The name that `create` was given.
  public var name: ShortName { state.name }
  /// The unit of all sizes and starts, a power of two.
  public var quantum: ArenaSize { ArenaSize(state.quantum) }
  /// The meaning of the arena's values.
  public var contents: ArenaContents { state.contents }
  /// Whether the arena imports.
  package var hasSource: Bool { state.source != nil }
  /// Whether both handles are of one arena.
  public static func == (a: Arena, b: Arena) -> Bool { a.storage == b.storage }

  // MARK: Allocation

  /// Allocates a segment of `size` values. Constant time with `.instantFit`.
  ///
  /// With a deadline and a priority other than `.interrupt` the call sleeps until there is space and tags,
  /// at most until then; without a deadline it fails at once. So does a request that none of the arena's spans, and no
  /// import, could satisfy even if all were free. A free serves the sleepers in order of arrival, those that it
  /// satisfies. Errors: `.noSpace`, `.noTags`, `.badConstraint` (a size of zero).
  public func alloc(
    _ size: ArenaSize, policy: FitPolicy = .instantFit, priority: AllocationPriority = .normal,
    until deadline: Tick? = nil,
    at site: CallSite = .here
  ) throws(VmemError) -> ArenaAddress {
    try xalloc(size, ArenaConstraints(), policy: policy, priority: priority, until: deadline, at: site)
  }

  /// Allocates a segment of `size` values that satisfies `constraints`, whenever a free segment can. `xfree` frees it.
  ///
  /// Errors and waiting as for `alloc`. `.badConstraint` if no arena whatsoever could satisfy the request.
  public func xalloc(
    _ size: ArenaSize, _ constraints: ArenaConstraints, policy: FitPolicy = .instantFit,
    priority: AllocationPriority = .normal, until deadline: Tick? = nil,
    failures: FailureRecording = .here, at site: CallSite = .here
  ) throws(VmemError) -> ArenaAddress {
    do throws(VmemError) {
      let request = try prepare(size, constraints)
      do throws(VmemError) {
        return try attempt(request, policy, priority, site)
      } catch {
        guard let deadline, priority != .interrupt else { throw error }
        return try attempt(request, priority, until: deadline, at: site)
      }
    } catch {
      countFailure(failures)
      guard failures == .here else { throw error }
      func refusedRequest() -> RefusedRequest {
        var refused = RefusedRequest(
          .segment, ByteCount(size.rawValue), priority: priority, requester: name,
          reason: error.description)
        refused.site = site
        return refused
      }
      state.machine.record(refusedRequest())
      throw error
    }
  }

  /// Frees a segment that `alloc` returned. Never fails and needs nothing.
  ///
  /// A foreign address, one that is free already and a wrong size are fault reports, and change nothing.
  public func free(_ address: ArenaAddress, _ size: ArenaSize, at site: CallSite = .here) {
    xfree(address, size, at: site)
  }

  /// Frees a segment that `xalloc` returned: see `free`.
  public func xfree(_ address: ArenaAddress, _ size: ArenaSize, at site: CallSite = .here) {
    let mask = state.quantum - 1
    let rounded = (size.rawValue &- 1) | mask
    let outcome = state.core.withLock { core -> FreeOutcome in
      guard let busy = core.hash.findForRemoval(address.rawValue) else { return .missing }
      let extent = core.links[busy.link].extent
      guard size.rawValue != 0, extent == rounded else {
        return .wrongSize(extent &+ 1, core.links[busy.link].callSite)
      }
      let work = core.release(busy, hasWaiters: state.tags.hasWaiters)
      state.frees.add()
      state.allocations.add(work.serving.segments)
      if work.released != nil { state.releases.add() }
      state.segments.set(core.lists.count + core.hash.count)
      return .done(work)
    }
    switch outcome {
    case .done(let work):
      if let released = work.released, let source = state.source {
        source.release(released.start, released.last)
      }
      perform(work)
    case .wrongSize(let expected, let allocatedAt):
      var fault = fault(.wrongSize, "a segment of an arena was freed with another size than it has", address)
      fault.given = size.rawValue
      fault.expected = expected
      fault.allocatedAt = allocatedAt
      fault.reportedAt = site
      state.machine.report(fault)
    case .missing:
      reportMissing(address, size, site)
    }
  }

  enum FreeOutcome {
    case done(ArenaCore.DeferredWork)
    case wrongSize(UInt64, CallSite)
    case missing
  }

  // MARK: Work with the lock dropped

  /// Gives the hash the page that it would like. Failure is harmless.
  @inline(never) func growHash(_ priority: AllocationPriority) {
    guard priority != .interrupt else { return }
    let tags = state.tags
    while state.core.withLock({ $0.hash.wantsPage }) {
      guard let page = tags.allocatePage(priority) else {
        state.core.withLock { $0.hash.postponeGrowth() }
        return
      }
      page.initializeMemory(as: UInt64.self, repeating: 0, count: Int(Page.size / 8))
      let link = tags.state.links.link(page)
      tags.state.pool.withLock { $0.hashPages += 1 }
      if !state.core.withLock({ $0.hash.install(link) }) {
        tags.state.pool.withLock { $0.hashPages -= 1 }
        tags.freePage(page)
      }
    }
  }

  /// Returns surplus spares, and wakes the waiters that missed tags. Called once no tag of this call is hidden.
  func returnSurplusTags() {
    let (returnedTags, wereMissed) = state.core.withLock { core in
      defer { core.spares.wereMissed = false }
      return (core.returnSpares(), core.spares.wereMissed)
    }
    if returnedTags { state.tags.trim() }
    if returnedTags || wereMissed { state.tags.wakeRetrying() }
  }

  /// Frees the pages of the hash and of tags that a free made superfluous, and wakes the waiters that it helped.
  func perform(_ work: ArenaCore.DeferredWork) {
    let tags = state.tags
    var page = work.pages
    while page != .none {
      let pointer = tags.state.links.pointer(page)
      page = pointer.load(as: Link.self)
      tags.state.pool.withLock { $0.hashPages -= 1 }
      tags.freePage(pointer)
    }
    if work.returnedTags { tags.trim() }
    if work.serving.mustWake {
      tags.wakeWaiters()
    } else if work.hadWaiters || work.returnedTags || work.released != nil {
      tags.wakeRetrying()
    }
  }

  // MARK: Reports

  private func fault(_ kind: FaultKind, _ what: StaticString, _ address: ArenaAddress) -> FaultReport {
    var fault = FaultReport(
      kind, what, address.rawValue,
      state.contents == .addresses ? .virtualAddress : .identifier)
    fault.owner = state.name
    return fault
  }

  @inline(never) private func reportMissing(_ address: ArenaAddress, _ size: ArenaSize, _ site: CallSite) {
    var fault: FaultReport
    if let segment = find(address) {
      switch segment.kind {
      case .free:
        fault = self.fault(.doubleFree, "a segment of an arena was freed that is free", address)
      default:
        fault = self.fault(.notAllocated, "the inside of a segment of an arena was freed", address)
        fault.expected = segment.first.rawValue
        fault.allocatedAt = segment.allocatedAt
      }
    } else {
      fault = self.fault(.foreignPointer, "the freed value belongs to no span of the arena", address)
    }
    fault.given = size.rawValue
    fault.reportedAt = site
    state.machine.report(fault)
  }

  @inline(never) func reportLeak(_ busy: UInt64, _ site: CallSite) {
    var first: Segment?
    walk { if first == nil, $0.kind == .busy { first = $0 } }
    var fault = self.fault(.leak, "an arena was destroyed with segments allocated", first?.first ?? .lowest)
    fault.given = busy
    fault.allocatedAt = first?.allocatedAt ?? .unknown
    fault.reportedAt = site
    state.machine.report(fault)
  }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension Arena: @unchecked Sendable {}
