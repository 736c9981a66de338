// Wired memory: single frames, in any order, behind consecutive addresses.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

/// Frames between two calls, few enough for the stack.
struct FrameBatch {
  static var capacity: UInt64 { 32 }
  private var frames: InlineArray<32, FrameNumber> = .init(repeating: .none)

  mutating func withFrames<R, E>(
    _ count: Int, _ body: (UnsafeMutableBufferPointer<FrameNumber>) throws(E) -> R
  ) throws(E) -> R {
    try withUnsafeMutablePointer(to: &frames) { array throws(E) in
      let first = UnsafeMutableRawPointer(array).assumingMemoryBound(to: FrameNumber.self)
      return try body(UnsafeMutableBufferPointer(start: first, count: count))
    }
  }
}

extension KernelAddressSpace {
  /// Allocates `count` pages of wired memory at consecutive addresses, writable and not executable. The frames behind
  /// them get `role` and `owner`, and need not be consecutive. Waits for frames as long as `wait` says.
  ///
  /// Errors: no frames, tables or tags; no addresses; a count of zero. Costs some hundred instructions a
  /// page, and 512 stores more for a page that must be zero.
  public func allocateWired(
    _ count: PageCount, from arena: WiredArena = .heap, role: FrameRole = .wired,
    priority: AllocationPriority = .normal, wait: WaitPolicy = .forbidden,
    contents: InitialContents = .unknown, failures: FailureRecording = .here, for owner: FrameOwner? = nil,
    at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let request = RangeRequest(
      kind: RangeKind(arena), count: count, priority: priority, wait: wait, contents: contents,
      failures: failures, site: site, statedOwner: owner)
    let address = try reserve(request)
    do throws(KernelSpaceError) {
      try back(address, request, role: role)
    } catch {
      release(request.kind, address, count, site)
      throw failed(error, request)
    }
    self.count(request.kind, mapped: count)
    return address
  }

  /// Frees a range of `allocateWired`, all of it. Returns false after a fault report: another size, or an address that
  /// is free, inside a range or in none. Then nothing has changed.
  @discardableResult
  public func freeWired(_ address: VirtualAddress, _ count: PageCount, at site: CallSite = .here) -> Bool {
    let kinds = RangeTagSet(RangeKind.heap.tag).union(RangeTagSet(RangeKind.metadata.tag))
      .union(RangeTagSet(RangeKind.interrupt.tag)).union(RangeTagSet(RangeKind.kernel.tag))
    guard let kind = unmap(address, count, kinds, site, visit: free) else { return false }
    release(kind, address, count, site)
    return true
  }

  /// Allocates and maps single frames behind the range, a batch at a time. Frees all of them when that fails.
  func back(
    _ address: VirtualAddress, _ request: RangeRequest, role: FrameRole
  ) throws(KernelSpaceError) {
    var batch = FrameBatch()
    var done: UInt64 = 0
    while done < request.count.rawValue {
      let some = Int(min(FrameBatch.capacity, request.count.rawValue - done))
      do throws(KernelSpaceError) {
        try batch.withFrames(some) { frames throws(KernelSpaceError) in
          try allocate(frames, role, request)
          do throws(PageTableError) {
            try tables.map(
              address + PageCount(done), frames: UnsafeBufferPointer(frames), protection: .kernelData,
              tag: done == 0 ? request.kind.tag : .none)
          } catch {
            for frame in frames { physical.free(FrameRun(first: frame, count: .one)) }
            throw .noMemory
          }
        }
      } catch {
        if done > 0 { tables.unmap(address, count: PageCount(done), visit: free) }
        throw error
      }
      done += UInt64(some)
    }
  }

  private func allocate(
    _ frames: UnsafeMutableBufferPointer<FrameNumber>, _ role: FrameRole, _ request: RangeRequest
  ) throws(KernelSpaceError) {
    do throws(PhysicalMemoryError) {
      try physical.allocateUnlogged(
        into: frames, role: role, priority: request.priority, for: request.owner)
    } catch {
      guard error == .noMemory && request.wait.mayWait else { throw KernelSpaceError(error) }
      try waitForFrames(frames, role, request)
    }
    if request.contents == .zero {
      for frame in frames { zero(FrameRun(first: frame, count: .one)) }
    }
  }

  /// Waits until frames enough are free, and allocates them one by one. Frees them again when another request was first
  /// and one does not come in time. Refuses at once more than memory has.
  private func waitForFrames(
    _ frames: UnsafeMutableBufferPointer<FrameNumber>, _ role: FrameRole, _ request: RangeRequest
  ) throws(KernelSpaceError) {
    let wanted = WaitingRequest(
      order: BlockOrder(0), role: role, priority: request.priority, owner: request.owner)
    // All together first, while none is held: of two requests, neither then waits for frames that the other holds.
    let wait = physical.waitForFrames(
      PageCount(UInt64(frames.count)), priority: request.priority, until: request.wait.deadline,
      unless: { false })
    if wait == .ended { throw .noMemory }
    for i in 0..<frames.count {
      guard let frame = physical.allocateWaiting(wanted, until: request.wait.deadline, unless: { false })
      else {
        for k in 0..<i { physical.free(FrameRun(first: frames[k], count: .one)) }
        throw .noMemory
      }
      frames[i] = frame
    }
  }

  /// Zeroes frames through the direct map.
  func zero(_ run: FrameRun) {
    machine.directMap.pointer(to: run.first).initializeMemory(
      as: UInt64.self, repeating: 0, count: Int(run.count.bytes.rawValue / 8))
  }
}
