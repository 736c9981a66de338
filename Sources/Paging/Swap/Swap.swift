// Swap: pages of memory on a block device, in slots of 4 KiB.
//
// Structures
//   slots       which are free: a bitmap with a summary (`SwapSlots`)
//   checksums   4 bytes a slot, of what was last written there (`Checksum`)
//   transfers   the pool of requests (`Transfers`), which others may use too
// Bitmap and checksums are made when the device is attached; from then on nothing here takes memory.
//
// A slot is reserved (under an object's lock, if need be), written, read and freed by whoever has it; its
// checksum belongs to the same. A write computes the checksums from memory as it begins. When it is
// done, a page counts as written only if the device says so: a cluster that failed is written again page by
// page, and the slots that fail alone are retired for good. A read is compared with the checksum, so that
// a torn, lost or flipped write is an error to whoever reads, never other data. What a device does
// wrong is told and nothing lost: the caller still has the page, and it stays dirty.
//
//   Invariants
//   1  a slot is free, used or bad; free + used + bad = total
//   2  the summary says which words of the bitmap have a free slot
//   3  the checksum of a free slot is 0, which no page has
//
// Locks. One spin lock (rank `pagingSwap`) covers slots and figures; holds are bounded (`SwapSlots`). The
// device, and the array of checksums, change only while no slot is used; whoever has one reads them without
// the lock. Nothing is submitted and no sleep begun with a lock held.
//
// Cost. Reserving: some hundred instructions a run on a device that is not fragmented, some thousand at
// worst. Freeing: about 150 a slot. Writing and reading: a checksum a page (1680), and some hundred for each
// request beside what the device takes.

import CPlatform
import MemoryPrimitives
import PhysicalMemory

/// Slots by state, and what was done with them.
public struct SwapFigures: Sendable {
  public var total: PageCount = .zero
  public var used: PageCount = .zero
  public var free: PageCount = .zero
  /// Retired.
  public var bad: PageCount = .zero
  /// Pages written, and not failed.
  public var writes: UInt64 = 0
  /// Pages read, and not failed.
  public var reads: UInt64 = 0
  /// Requests to write of two pages or more.
  public var clusters: UInt64 = 0
  /// Requests that the device failed.
  public var failures: UInt64 = 0
  /// Pages that came back with another checksum.
  public var corrupt: UInt64 = 0
}

/// A write that was begun.
public struct SwapWrite {
  let transfer: Transfer
  /// Where the pages go, in their order.
  public let run: SlotRun
}

/// A read that was begun.
public struct SwapRead {
  let transfer: Transfer
  public let slot: SwapSlot
}

/// What became of a write.
public struct SwapWritten: Equatable, Sendable {
  public let run: SlotRun
  /// A bit for each page of the run that failed.
  let failures: UInt32

  /// Where page `index` of the write is now; nil when it failed, and its slot is retired.
  public func slot(_ index: Int) -> SwapSlot? {
    precondition(index >= 0 && index < Int(run.count.rawValue), "a page outside of the write")
    return failures >> UInt32(index) & 1 != 0 ? nil : run.first + PageCount(index)
  }
  /// Pages that failed.
  public var failedCount: PageCount { PageCount(failures.nonzeroBitCount) }
}

/// The swap device and its slots: a handle.
public struct Swap {
  struct State: ~Copyable {
    let machine: Machine
    let physical: FrameAllocator
    let transfers: Transfers
    let core: Locked<Core>
    /// Changes only while no slot is used.
    let attachment: Cell<Attachment?>
  }

  struct Attachment {
    let device: BlockDevice
    let checksums: FrameArray<UInt32>
  }

  /// Under the lock.
  struct Core {
    var phase = Phase.detached
    var slots: SwapSlots?
    var writes: UInt64 = 0
    var reads: UInt64 = 0
    var clusters: UInt64 = 0
    var failures: UInt64 = 0
    var corrupt: UInt64 = 0
  }
  enum Phase { case detached, changing, attached }

  let state: UnsafeMutablePointer<State>

  /// Bytes that `create` needs, aligned to 64.
  public static var stateSize: ByteCount { ByteCount(MemoryLayout<State>.stride) }
  /// The most slots that are used of a device: what lies beyond is left alone.
  public static var slotLimit: PageCount { PageCount(UInt64(SwapSlot.none.rawValue)) }
  /// The most pages of one write.
  public static var clusterLimit: PageCount { PageCount(Int(CP_BLOCK_PAGES)) }

  /// Swap without a device. Its requests come from `transfers`.
  public static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator, transfers: Transfers
  ) -> Swap {
    let state = memory.bindMemory(to: State.self, capacity: 1)
    state.initialize(
      to: State(
        machine: machine, physical: physical, transfers: transfers, core: Locked(.pagingSwap, Core()),
        attachment: Cell(nil)))
    return Swap(state: state)
  }

  // MARK: The device

  /// Takes `device` for swap: all slots are free, whatever is on it. Takes a frame for each 1024 slots, one
  /// for about each 16 000, and a store for each slot. Throws `noMemory`; `badConstraint` when there is a
  /// device already, or this one has no pages.
  public func attach(_ device: BlockDevice, priority: AllocationPriority = .normal) throws(PagingError) {
    let total = Int(min(device.pageCount, Self.slotLimit).rawValue)
    guard total > 0, change(from: .detached, to: .changing) else { throw .badConstraint }
    let (physical, machine) = (state.pointee.physical, state.pointee.machine)
    do throws(PagingError) {
      let words = try FrameArray<UInt64>(
        count: SwapSlots.wordCount(total), initial: 0, physical: physical, machine: machine,
        priority: priority)
      do throws(PagingError) {
        let checksums = try FrameArray<UInt32>(
          count: total, initial: 0, physical: physical, machine: machine, priority: priority)
        state.pointee.attachment.address.pointee = Attachment(device: device, checksums: checksums)
      } catch {
        words.free()
        throw error
      }
      let slots = SwapSlots(words, total: total)
      state.pointee.core.withLock {
        $0.slots = slots
        $0.phase = .attached
      }
    } catch {
      _ = change(from: .changing, to: .detached)
      throw error
    }
  }

  /// Lets go of the device; all memory comes back. Throws `badConstraint` while a slot is used, and when
  /// there is no device.
  public func detach() throws(PagingError) {
    let slots = try state.pointee.core.withLock { (core) throws(PagingError) in
      guard core.phase == .attached, let slots = core.slots, slots.used == 0 else { throw .badConstraint }
      core.phase = .changing
      core.slots = nil
      return slots
    }
    slots.destroy()
    attachment.checksums.free()
    state.pointee.attachment.address.pointee = nil
    _ = change(from: .changing, to: .detached)
  }

  private func change(from old: Phase, to new: Phase) -> Bool {
    state.pointee.core.withLock {
      guard $0.phase == old else { return false }
      $0.phase = new
      return true
    }
  }

  /// Of whoever has a slot.
  private var attachment: Attachment {
    guard let attachment = state.pointee.attachment.address.pointee else {
      preconditionFailure("swap is used without a device")
    }
    return attachment
  }

  /// The device, or nil. Constant.
  public var device: BlockDevice? {
    state.pointee.core.withLock {
      $0.phase == .attached ? state.pointee.attachment.address.pointee?.device : nil
    }
  }

  // MARK: Slots

  /// Takes up to `count` free slots that follow each other, at most 32: the next run that is long enough, or
  /// the longest of those looked at, one slot at worst. Nil when no slot is free, or no device
  /// attached. Bounded; may be called with the lock of an object held.
  public func reserve(upTo count: PageCount) -> SlotRun? {
    let wanted = Int(min(count, Self.clusterLimit).rawValue)
    return state.pointee.core.withLock { $0.slots?.take(upTo: wanted) }
  }

  /// The slot is free again; it may be given out at once. One that is not used is a fault. Constant;
  /// may be called with the lock of an object held.
  public func free(_ slot: SwapSlot) {
    let status = state.pointee.core.withLock {
      let status = $0.slots?.release(slot) ?? .beyond
      // What was written there is nobody's, the next one's least of all.
      if status == .used { attachment.checksums[Int(slot.rawValue)] = 0 }
      return status
    }
    if status != .used { refuse(slot, status, "a swap slot was freed while free") }
  }

  /// The slots are free again.
  public func free(_ run: SlotRun) {
    for i in 0..<run.count.rawValue { free(run.first + PageCount(i)) }
  }

  /// The slot is used no more and never again: what was written there did not come back. One that is not used
  /// is a fault. Constant; may be called with the lock of an object held.
  public func retire(_ slot: SwapSlot) {
    let status = state.pointee.core.withLock { $0.slots?.retire(slot) ?? .beyond }
    if status != .used { refuse(slot, status, "a swap slot was retired while free") }
  }

  @inline(never) private func refuse(_ slot: SwapSlot, _ status: SwapSlots.Status, _ ifFree: StaticString) {
    let (kind, what): (FaultKind, StaticString) =
      switch status {
      case .free: (.doubleFree, ifFree)
      case .bad: (.notAllocated, "a retired swap slot was given back")
      default: (.foreignPointer, "a swap slot beyond the device was given back")
      }
    state.pointee.machine.report(FaultReport(kind, what, UInt64(slot.rawValue), .identifier))
  }

  // MARK: Writing

  /// Begins to write `frames` to the slots of `run`, which the caller has and which are as many, in one
  /// request. The checksums are taken now. Nil, and nothing done, when the pool has no idle request: then the
  /// caller finishes what it has begun, or waits by `Transfers.waitForAny`. Frames must stay as
  /// they are until the write is finished; what is written to them meanwhile makes the slot useless, no more.
  /// No spin lock may be held.
  public func beginWrite(_ frames: UnsafeBufferPointer<FrameNumber>, to run: SlotRun) -> SwapWrite? {
    precondition(
      frames.count > 0 && run.count == PageCount(frames.count) && run.count <= Self.clusterLimit,
      "a write to swap has as many slots as frames, 1 to 32")
    let (attachment, transfers) = (attachment, state.pointee.transfers)
    guard let transfer = transfers.claim() else { return nil }
    let list = cp_block_frames(transfers.request(transfer))
    for i in 0..<frames.count {
      list[i] = frames[i].rawValue
      note(run.first + PageCount(i), frames[i], attachment)
    }
    transfers.start(
      transfer, attachment.device, .write, DevicePage(UInt64(run.first.rawValue)), run.count)
    return SwapWrite(transfer: transfer, run: run)
  }

  /// Whether `finishWrite` would not have to sleep for the request.
  public func isDone(_ write: SwapWrite) -> Bool { state.pointee.transfers.isDone(write.transfer) }

  /// Sleeps until the write is done, and tells which pages have arrived. When a cluster failed, each page is
  /// written again by itself; the slots of pages that fail alone are retired. The others are the caller's as
  /// before. Takes no memory. No spin lock may be held.
  public func finishWrite(_ write: SwapWrite) -> SwapWritten {
    let transfers = state.pointee.transfers
    let count = write.run.count.rawValue
    transfers.wait(write.transfer)
    var failures: UInt32 = 0
    var requests: UInt64 = transfers.hasFailed(write.transfer) ? 1 : 0
    if requests != 0 { failures = count == 1 ? 1 : writeSingly(write, &requests) }
    transfers.end(write.transfer)
    state.pointee.core.withLock {
      $0.writes += count - UInt64(failures.nonzeroBitCount)
      $0.failures += requests
      if count > 1 { $0.clusters += 1 }
    }
    if failures != 0 {
      for i in 0..<count where failures >> UInt32(i) & 1 != 0 { retire(write.run.first + PageCount(i)) }
    }
    return SwapWritten(run: write.run, failures: failures)
  }

  /// Writes each page of a cluster by itself, with the cluster's request. Answers those that failed.
  @inline(never) private func writeSingly(_ write: SwapWrite, _ failedRequests: inout UInt64) -> UInt32 {
    let (attachment, transfers) = (attachment, state.pointee.transfers)
    let list = cp_block_frames(transfers.request(write.transfer))
    var failures: UInt32 = 0
    for i in 0..<Int(write.run.count.rawValue) {
      let slot = write.run.first + PageCount(i)
      list[0] = list[i]
      note(slot, FrameNumber(list[0]), attachment)
      transfers.start(
        write.transfer, attachment.device, .write, DevicePage(UInt64(slot.rawValue)), .one)
      transfers.wait(write.transfer)
      if transfers.hasFailed(write.transfer) {
        failures |= 1 << UInt32(i)
        failedRequests += 1
      }
    }
    return failures
  }

  @inline(__always)
  private func note(_ slot: SwapSlot, _ frame: FrameNumber, _ attachment: Attachment) {
    attachment.checksums[Int(slot.rawValue)] =
      Checksum.of(state.pointee.machine.directMap.pointer(to: frame))
  }

  // MARK: Reading

  /// Begins to read the page in `slot`, which the caller has, into `frame`. Nil, and nothing done, when the
  /// pool has no idle request. No spin lock may be held.
  public func beginRead(_ slot: SwapSlot, into frame: FrameNumber) -> SwapRead? {
    let (device, transfers) = (attachment.device, state.pointee.transfers)
    guard let transfer = transfers.claim() else { return nil }
    cp_block_frames(transfers.request(transfer))[0] = frame.rawValue
    transfers.start(transfer, device, .read, DevicePage(UInt64(slot.rawValue)), .one)
    return SwapRead(transfer: transfer, slot: slot)
  }

  /// Whether `finishRead` would not have to sleep.
  public func isDone(_ read: SwapRead) -> Bool { state.pointee.transfers.isDone(read.transfer) }

  /// Sleeps until the page is in its frame. Throws `inputOutput` when the device failed, `corrupt` when what
  /// came is not what was written; the frame then holds anything, and the slot is the caller's as before.
  /// No spin lock may be held.
  public func finishRead(_ read: SwapRead) throws(PagingError) {
    let transfers = state.pointee.transfers
    transfers.wait(read.transfer)
    let hasFailed = transfers.hasFailed(read.transfer)
    let frame = FrameNumber(cp_block_frames(transfers.request(read.transfer))[0])
    transfers.end(read.transfer)
    if hasFailed {
      state.pointee.core.withLock { $0.failures += 1 }
      throw .inputOutput
    }
    let isSame =
      attachment.checksums[Int(read.slot.rawValue)]
      == Checksum.of(state.pointee.machine.directMap.pointer(to: frame))
    state.pointee.core.withLock {
      $0.reads += 1
      if !isSame { $0.corrupt += 1 }
    }
    if !isSame { throw .corrupt }
  }

  /// Reads the page in `slot`, which the caller has, into `frame`: both of the above, waiting for a request
  /// if need be. The caller has no transfer of its own that others would wait for.
  public func read(_ slot: SwapSlot, into frame: FrameNumber) throws(PagingError) {
    while true {
      if let read = beginRead(slot, into: frame) { return try finishRead(read) }
      let canCome = state.pointee.transfers.waitForAny()
      precondition(canCome, "who has all transfers does not end any")
    }
  }

  // MARK: Looking

  /// Slots and what was done, at one moment. Constant.
  public var figures: SwapFigures {
    state.pointee.core.withLock {
      var figures = SwapFigures()
      if let slots = $0.slots {
        figures.total = PageCount(slots.total)
        figures.used = PageCount(slots.used)
        figures.free = PageCount(slots.free)
        figures.bad = PageCount(slots.bad)
      }
      figures.writes = $0.writes
      figures.reads = $0.reads
      figures.clusters = $0.clusters
      figures.failures = $0.failures
      figures.corrupt = $0.corrupt
      return figures
    }
  }

  /// The number of the invariant (see above) that does not hold, or nil. For tests, while nothing runs: a step for
  /// each slot.
  public func checkInvariants() -> Int? {
    guard let slots = state.pointee.core.quiet.pointee.slots else { return nil }
    if slots.free < 0 || slots.used < 0 || slots.bad < 0 { return 1 }
    if !slots.isSound { return 2 }
    for index in 0..<slots.total {
      let isFree = slots.status(of: SwapSlot(UInt32(index))) == .free
      if isFree && attachment.checksums[index] != 0 { return 3 }
    }
    return nil
  }

  /// Adds the rows `vm.swap.…` to the registry.
  public func register(in statistics: Statistics) {
    let context = UnsafeMutableRawPointer(state)
    func row(
      _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, unit, kind, about, context: context, read: read))
    }
    row("vm.swap.total", .pages, .gauge, "slots of the swap device") { Self($0).figures.total.rawValue }
    row("vm.swap.used", .pages, .gauge, "slots that are reserved or written") {
      Self($0).figures.used.rawValue
    }
    row("vm.swap.free", .pages, .gauge, "slots to be had") { Self($0).figures.free.rawValue }
    row("vm.swap.bad", .pages, .gauge, "slots that failed a write, retired") {
      Self($0).figures.bad.rawValue
    }
    row("vm.swap.writes", .pages, .counter, "pages written to swap") { Self($0).figures.writes }
    row("vm.swap.reads", .pages, .counter, "pages read from swap") { Self($0).figures.reads }
    row("vm.swap.clusters", .requests, .counter, "writes of two pages or more") {
      Self($0).figures.clusters
    }
    row("vm.swap.failures", .requests, .counter, "requests that the device failed") {
      Self($0).figures.failures
    }
    row("vm.swap.corrupt", .pages, .counter, "pages that came back with another checksum") {
      Self($0).figures.corrupt
    }
  }

  init(state: UnsafeMutablePointer<State>) { self.state = state }
  private init(_ context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }
}
