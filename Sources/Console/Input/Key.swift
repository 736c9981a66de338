// From bytes to keys: control characters and the escape sequences that terminals send for arrows and
// the like (ECMA-48 section 5.4; xterm's "PC-Style Function Keys").
//
// An unknown sequence is dropped whole, so that no key leaves half of it in the line.

/// A key, as the line editor and the pager understand it.
enum Key: Equatable {
  case character(UInt8)
  case enter, backspace, delete, tab
  case left, right, wordLeft, wordRight, home, end, up, down
  case eraseLine, eraseToEnd, eraseWord, clearScreen
  case interrupt, endOfInput
  /// The terminal's answer to where its cursor is.
  case cursor(row: UInt16, column: UInt16)
}

/// A state machine over the bytes that arrive.
struct KeyDecoder {
  private enum Stage: UInt8 { case ground, escape, sequence, single }
  private var stage = Stage.ground
  private var since: UInt64 = 0
  private var parameters: (UInt16, UInt16) = (0, 0)
  private var parameterCount = 0
  private var afterReturn = false

  init() {}

  /// Milliseconds after which an escape byte is a key of its own, and a sequence is dropped.
  private static var sequenceLimit: UInt64 { 50 }

  /// The key that `byte`, read at `now` milliseconds, completes.
  mutating func feed(_ byte: UInt8, at now: UInt64) -> Key? {
    if stage != .ground && now &- since > Self.sequenceLimit { stage = .ground }
    switch stage {
    case .ground:
      return plain(byte, at: now)
    case .escape:
      stage = .ground
      switch byte {
      case UInt8(ascii: "["):
        stage = .sequence
        parameters = (0, 0)
        parameterCount = 0
        return nil
      case UInt8(ascii: "O"):
        stage = .single
        // The keys of this form have none; those of the sequence before are not theirs.
        parameters = (0, 0)
        return nil
      case UInt8(ascii: "b"): return .wordLeft
      case UInt8(ascii: "f"): return .wordRight
      case 0x7f, 0x08: return .eraseWord
      default: return byte < 0x20 ? plain(byte, at: now) : nil
      }
    case .single:
      stage = .ground
      if byte < 0x20 { return plain(byte, at: now) }
      if case .cursor = final(byte) { return nil }
      return final(byte)
    case .sequence:
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"):
        let digit = UInt16(byte - UInt8(ascii: "0"))
        if parameterCount == 0 {
          parameters.0 = min(parameters.0, 999) * 10 + digit
        } else {
          parameters.1 = min(parameters.1, 999) * 10 + digit
        }
        return nil
      case UInt8(ascii: ";"):
        parameterCount += 1
        return nil
      case 0x40...0x7e:
        stage = .ground
        return final(byte)
      case 0x20..<0x40:
        return nil
      default:
        // Not part of any sequence: the sequence that has begun is dropped.
        stage = .ground
        return plain(byte, at: now)
      }
    }
  }

  private mutating func plain(_ byte: UInt8, at now: UInt64) -> Key? {
    let followsReturn = afterReturn
    afterReturn = byte == 0x0d
    switch byte {
    case 0x01: return .home
    case 0x02: return .left
    case 0x03: return .interrupt
    case 0x04: return .endOfInput
    case 0x05: return .end
    case 0x06: return .right
    case 0x08, 0x7f: return .backspace
    case 0x09: return .tab
    // A pasted line may end in both bytes, which are one Enter.
    case 0x0a: return followsReturn ? nil : .enter
    case 0x0b: return .eraseToEnd
    case 0x0c: return .clearScreen
    case 0x0d: return .enter
    case 0x0e: return .down
    case 0x10: return .up
    case 0x15: return .eraseLine
    case 0x17: return .eraseWord
    case 0x1b:
      stage = .escape
      since = now
      return nil
    case 0x20..<0x7f: return .character(byte)
    default: return nil
    }
  }

  private func final(_ byte: UInt8) -> Key? {
    switch byte {
    case UInt8(ascii: "A"): return .up
    case UInt8(ascii: "B"): return .down
    case UInt8(ascii: "C"): return parameters.1 > 1 ? .wordRight : .right
    case UInt8(ascii: "D"): return parameters.1 > 1 ? .wordLeft : .left
    case UInt8(ascii: "H"): return .home
    case UInt8(ascii: "F"): return .end
    case UInt8(ascii: "R"): return .cursor(row: parameters.0, column: parameters.1)
    case UInt8(ascii: "~"):
      switch parameters.0 {
      case 1, 7: return .home
      case 4, 8: return .end
      case 3: return .delete
      default: return nil
      }
    default: return nil
    }
  }
}
