; The 256 interrupt entries: each brings the stack into the shape of `struct cp_trap_frame` and calls
; `kernel_interrupt(frame)`. There is one privilege level, so gs needs no swapping, and the kernel uses
; no vector registers, so none are saved.

bits 64

extern kernel_interrupt
global interrupt_vectors, interrupt_return, cp_load_tables

section .text progbits alloc exec nowrite align=16

; Vectors for which the processor pushes an error code (SDM vol. 3A, table 6-1).
%define has_error(v) ((v) == 8 || ((v) >= 10 && (v) <= 14) || (v) == 17 || (v) == 21 || (v) == 29 || (v) == 30)

interrupt_vectors:
%assign v 0
%rep 256
        align 16
  %if !has_error(v)
        push qword 0
  %endif
        push strict dword v
        jmp strict near enter_interrupt
  %assign v v + 1
%endrep

enter_interrupt:
        push rax
        push rbx
        push rcx
        push rdx
        push rsi
        push rdi
        push rbp
        push r8
        push r9
        push r10
        push r11
        push r12
        push r13
        push r14
        push r15
        cld
        mov rdi, rsp                            ; 22 words from an aligned stack: aligned for the call
        call kernel_interrupt
interrupt_return:
        pop r15
        pop r14
        pop r13
        pop r12
        pop r11
        pop r10
        pop r9
        pop r8
        pop rbp
        pop rdi
        pop rsi
        pop rdx
        pop rcx
        pop rbx
        pop rax
        add rsp, 16
        iretq

; cp_load_tables(segments, interrupts): selectors 8 code, 16 data, 32 task state. Loading fs and gs would
; clear the base of gs; they were loaded with 0 before it was set.
cp_load_tables:
        lgdt [rdi]
        lidt [rsi]
        mov eax, 16
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov eax, 32
        ltr ax
        pop rax
        push qword 8
        push rax
        retfq
