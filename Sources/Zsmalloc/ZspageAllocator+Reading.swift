// Reading an object where it lies: in one part, or in two when it straddles two pages.

import CPlatform
import MemoryPrimitives
import PhysicalMemory

/// The bytes of an object in the direct map: all in the first part, or the rest in a second one.
public struct ObjectParts {
  /// The object's first bytes.
  public let first: UnsafeRawBufferPointer
  /// The bytes on the next page; empty for an object that lies in one page.
  public let second: UnsafeRawBufferPointer

  /// Copies the object into the start of `buffer`, which has space for it.
  @inline(__always) public func copy(into buffer: UnsafeMutableRawBufferPointer) {
    buffer.copyMemory(from: first)
    guard second.count > 0 else { return }
    UnsafeMutableRawBufferPointer(rebasing: buffer[first.count...]).copyMemory(from: second)
  }
}

/// A slot's bytes, to be written.
struct SlotParts {
  let first: UnsafeMutableRawBufferPointer
  let second: UnsafeMutableRawBufferPointer
}

/// An object that stays where it is until `unpin`.
struct PinnedObject {
  let zspage: Zspage
  let shape: ChainClass
  let slot: Int
}

extension ZspageAllocator {
  /// Calls `body` with the bytes of an object, which stay where they are until it returns; it must not sleep. Takes
  /// no lock. Reports a fault and answers nil, without calling `body`, if the handle names no object of this store.
  @inline(__always) public func withParts<R, E>(
    of handle: ZspageHandle, _ body: (ObjectParts) throws(E) -> R
  ) throws(E) -> R? {
    guard let object = pin(handle) else { return nil }
    defer { object.zspage.unpin() }
    let parts = location(of: object.slot, in: object.zspage, length: handle.length)
    return try body(
      ObjectParts(first: UnsafeRawBufferPointer(parts.first), second: UnsafeRawBufferPointer(parts.second))
    )
  }

  /// Copies an object into the start of `buffer`, and answers its length. Answers nil if the buffer is too small, or
  /// if the handle names no object, which is reported.
  @discardableResult
  public func copy(_ handle: ZspageHandle, into buffer: UnsafeMutableRawBufferPointer) -> ByteCount? {
    guard handle.length <= buffer.count else { return nil }
    return withParts(of: handle) {
      $0.copy(into: buffer)
      return handle.byteCount
    }
  }

  /// Keeps an object where it is. Reports a fault and answers nil for a handle that names none.
  func pin(_ handle: ZspageHandle) -> PinnedObject? {
    var spins: UInt32 = 0
    while true {
      switch withInterruptsOff({ tryPin(handle) }) {
      case .pinned(let object): return object
      case .isMoving:
        // By another processor, which holds a spin lock.
        cp_pause(spins)
        spins &+= 1
      case .notAllocated:
        report(.notAllocated, "the handle names no object of the store", handle)
        return nil
      case .wrongSize:
        report(.wrongSize, "the handle's length is not that of its object", handle)
        return nil
      }
    }
  }

  private enum PinAnswer {
    case pinned(PinnedObject)
    case isMoving, notAllocated, wrongSize
  }

  /// Pins the zspage of an object. Interrupts are off from the look at its descriptor to the pin: see
  /// `releaseDescriptors`.
  @inline(__always) private func tryPin(_ handle: ZspageHandle) -> PinAnswer {
    guard let raw = state.pointee.cells.entry(handle.cell, stride: Cell.size), let at = Cell(raw: raw).place
    else { return .notAllocated }
    // Missing where the object has moved, and its zspage's descriptor was released since.
    guard let descriptor = state.pointee.zspages.entry(Cell.zspage(at), stride: Zspage.size) else {
      return Cell(raw: raw).place == at ? .notAllocated : .isMoving
    }
    let zspage = Zspage(raw: descriptor)
    guard zspage.tryPin() else { return .isMoving }
    guard Cell(raw: raw).place == at, let number = zspage.sizeClass else {
      zspage.unpin()
      return .isMoving
    }
    guard handle.length > 0, handle.length <= Int(Page.size), classes.number(for: handle.length) <= number
    else {
      zspage.unpin()
      return .wrongSize
    }
    return .pinned(PinnedObject(zspage: zspage, shape: classes[number], slot: Cell.slot(at)))
  }

  /// The bytes of the object in a slot. The zspage is pinned.
  @inline(__always) func location(of slot: Int, in zspage: Zspage, length: Int) -> SlotParts {
    let shape = classes[zspage.number]
    var (page, offset) = shape.place(ofSlot: slot)
    if !shape.isHuge { offset += ChainClasses.headerSize }
    // A header never straddles, but may be all that a page has of the slot.
    if offset == Int(Page.size) { (page, offset) = (page + 1, 0) }
    let inFirst = min(length, Int(Page.size) - offset)
    let first = machine.directMap.pointer(to: zspage.frame(page)) + offset
    guard inFirst < length else {
      return SlotParts(
        first: UnsafeMutableRawBufferPointer(start: first, count: length),
        second: UnsafeMutableRawBufferPointer(start: nil, count: 0))
    }
    return SlotParts(
      first: UnsafeMutableRawBufferPointer(start: first, count: inFirst),
      second: UnsafeMutableRawBufferPointer(
        start: machine.directMap.pointer(to: zspage.frame(page + 1)), count: length - inFirst))
  }
}
