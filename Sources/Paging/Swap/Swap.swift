// Swap: pages of memory on a block device, in slots of 4 KiB.
//
// STRUCTURES
//   slots       the free ones: a bitmap with a summary (`SwapSlots`)
//   checksums   4 bytes a slot, of the page that was last written there (`Checksum`)
//   transfers   the pool of requests (`Transfers`), which other clients may use too
// Bitmap and checksums are allocated when the device is attached; from then on nothing here needs memory.
//
// A slot is reserved (under an object's lock, if need be), written, read and freed by its owner; its
// checksum belongs to the same owner. A write computes the checksums from memory as it begins. When it is
// done, a page counts as written only if the device says so. A cluster that failed is written again page by
// page, and the slots that fail alone are retired for good. A read is compared with the checksum, so that
// a torn, lost or flipped write is an error to the reader, never other data. Device errors are
// reported and no data is lost: the caller still has the page, and it stays dirty.
//
// INVARIANTS (`checkInvariants`)
//   SW-1  A slot is free, used or bad; the counts are those of the bitmap, and free + used + bad = total.
//   SW-2  The summary says which words of the bitmap have a free slot.
//   SW-3  The checksum of a free slot is 0, which no page has.
//
// LOCKS. One spin lock (rank `pagingSwap`) covers slots and figures; holds are bounded (`SwapSlots`). The
// device, and the array of checksums, change only while no slot is used; the owner of a slot reads them without
// the lock. No request is submitted and no thread sleeps with a lock held.
//
// COST. Reserving: some hundred instructions a run on a device that is not fragmented, some thousand at
// worst. Freeing: about 150 a slot. Writing and reading: a checksum a page (1680), and some hundred for each
// request beside the device's own.
//
// EXHAUSTION. `reserve` answers nil when no slot is free, and `beginWrite` and `beginRead` when the pool has no idle
// request. Only `attach` allocates.

import BlockDevices
import CPlatform
import MemoryPrimitives
import PhysicalMemory

/// Slots by state, and counts of operations since the start.
package struct SwapFigures: Sendable {
  /// Slots of the device.
  package var total: PageCount = .zero
  /// Slots that are reserved or written.
  package var used: PageCount = .zero
  /// Slots that can be reserved.
  package var free: PageCount = .zero
  /// Slots that are retired.
  package var bad: PageCount = .zero
  /// Pages written successfully.
  package var writes: UInt64 = 0
  /// Pages read successfully.
  package var reads: UInt64 = 0
  /// Requests to write of two pages or more.
  package var clusters: UInt64 = 0
  /// Requests that the device failed.
  package var failures: UInt64 = 0
  /// Pages that came back with another checksum.
  package var corrupt: UInt64 = 0
}

/// The swap device and its slots: a handle.
package struct Swap {
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

  /// Data under the lock.
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

  let storage: UnsafeMutablePointer<State>

  /// The state, in place.
  @inline(__always) var state: State { unsafeAddress { UnsafePointer(storage) } }

  /// Bytes that `create` needs, aligned to 64.
  package static var stateSize: ByteCount { ByteCount(MemoryLayout<State>.stride) }
  /// The most slots of a device; pages beyond are not used.
  package static var slotLimit: PageCount { PageCount(UInt64(SwapSlot.none.rawValue)) }
  /// The most pages of one write.
  package static var clusterLimit: PageCount { PageCount(Int(CP_BLOCK_PAGES)) }

  /// Creates swap without a device. Its requests come from `transfers`.
  package static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator, transfers: Transfers
  ) -> Swap {
    let storage = memory.bindMemory(to: State.self, capacity: 1)
    storage.initialize(
      to: State(
        machine: machine, physical: physical, transfers: transfers, core: Locked(.pagingSwap, Core()),
        attachment: Cell(nil)))
    return Swap(storage)
  }

  // MARK: The device

  /// Attaches `device` for swap; all slots are free, and its content is ignored. Allocates a frame for each 1024 slots
  /// and one for about each 16 000; a store for each slot. Throws `noMemory`; `badConstraint` when there is a
  /// device already, or this one has no pages.
  package func attach(_ device: BlockDevice, priority: AllocationPriority = .normal) throws(PagingError) {
    let total = Int(min(device.pageCount, Self.slotLimit).rawValue)
    guard total > 0, change(from: .detached, to: .changing) else { throw .badConstraint }
    let (physical, machine) = (state.physical, state.machine)
    do throws(PagingError) {
      let words = try FrameArray<UInt64>(
        count: SwapSlots.wordCount(total), initial: 0, physical: physical, machine: machine,
        priority: priority)
      do throws(PagingError) {
        let checksums = try FrameArray<UInt32>(
          count: total, initial: 0, physical: physical, machine: machine, priority: priority)
        state.attachment.address.pointee = Attachment(device: device, checksums: checksums)
      } catch {
        words.free()
        throw error
      }
      let slots = SwapSlots(words, total: total)
      state.core.withLock {
        $0.slots = slots
        $0.phase = .attached
      }
    } catch {
      _ = change(from: .changing, to: .detached)
      throw error
    }
  }

  /// Detaches the device, and frees all memory. Throws `badConstraint` while a slot is used, and when
  /// there is no device.
  package func detach() throws(PagingError) {
    let slots = try state.core.withLock { (core) throws(PagingError) in
      guard core.phase == .attached, let slots = core.slots, slots.used == 0 else { throw .badConstraint }
      core.phase = .changing
      core.slots = nil
      return slots
    }
    slots.destroy()
    attachment.checksums.free()
    state.attachment.address.pointee = nil
    _ = change(from: .changing, to: .detached)
  }

  private func change(from old: Phase, to new: Phase) -> Bool {
    state.core.withLock {
      guard $0.phase == old else { return false }
      $0.phase = new
      return true
    }
  }

  /// The device and the checksums. The caller has a slot.
  var attachment: Attachment {
    guard let attachment = state.attachment.address.pointee else {
      preconditionFailure("swap is used without a device")
    }
    return attachment
  }

  /// The device, if one is attached. Constant.
  package var device: BlockDevice? {
    state.core.withLock {
      $0.phase == .attached ? state.attachment.address.pointee?.device : nil
    }
  }

  // MARK: Slots

  /// Reserves up to `count` free slots that follow each other, at most 32: the next run that is long enough, or
  /// the longest of those inspected, one slot at worst. Nil when no slot is free, or no device is
  /// attached. Bounded; may be called with the lock of an object held.
  package func reserve(upTo count: PageCount) -> SlotRun? {
    let wanted = Int(min(count, Self.clusterLimit).rawValue)
    return state.core.withLock { $0.slots?.reserve(upTo: wanted) }
  }

  /// Frees a slot, which may be reserved again at once. One that is not used is a fault report. Constant;
  /// may be called with the lock of an object held.
  package func free(_ slot: SwapSlot) {
    let status = state.core.withLock {
      let status = $0.slots?.release(slot) ?? .beyond
      // The old content must not pass for a page of the next owner.
      if status == .used { attachment.checksums[Int(slot.rawValue)] = 0 }
      return status
    }
    if status != .used { report(slot, status, ifFree: "a swap slot was freed while free") }
  }

  /// Frees the slots of a run.
  package func free(_ run: SlotRun) {
    for i in 0..<run.count.rawValue { free(run.first + PageCount(i)) }
  }

  /// Retires a slot for good, because the device lost a page there. One that is not used
  /// is a fault report. Constant; may be called with the lock of an object held.
  package func retire(_ slot: SwapSlot) {
    let status = state.core.withLock { $0.slots?.retire(slot) ?? .beyond }
    if status != .used { report(slot, status, ifFree: "a swap slot was retired while free") }
  }

  @inline(never) private func report(_ slot: SwapSlot, _ status: SwapSlots.Status, ifFree: StaticString) {
    let (kind, what): (FaultKind, StaticString) =
      switch status {
      case .free: (.doubleFree, ifFree)
      case .bad: (.notAllocated, "a retired swap slot was freed")
      default: (.foreignPointer, "a swap slot beyond the device was freed")
      }
    state.machine.report(FaultReport(kind, what, UInt64(slot.rawValue), .identifier))
  }

  init(_ storage: UnsafeMutablePointer<State>) { self.storage = storage }
  init(_ context: UnsafeMutableRawPointer?) {
    storage = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }
}
